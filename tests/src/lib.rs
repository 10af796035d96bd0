//! What the tests of the whole mesh share. The mesh's policies in one thread, from a seed: [`sim`]. The real programs, a real
//! broker and real components: [`e2e`].

pub mod e2e;
pub mod sim;
