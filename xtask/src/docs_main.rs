//! Writes `docs/subjects.md` from the compiled contract, or with `--check` compares: the page cannot say anything else than the code.

fn main() {}
