//! What the tests of the whole mesh share. The mesh's policies in one thread, from a seed: [`sim`].

pub mod sim;
