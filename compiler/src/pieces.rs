//! Which piece of which weight a thread packs next.
//!
//! The largest weight is begun first, and every weight by a thread of its own, which packs its pieces one after
//! the other: as long as there are weights, nobody waits for anybody. When all are begun, who is done helps
//! where most is left, so that no thread works long alone at the end: the embedding of a small model is a third
//! of it.

use std::cmp::Reverse;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A piece of a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Number of the weight.
    pub(crate) weight: usize,
    /// Number of the piece within it.
    pub(crate) index: u64,
}

/// The pieces that nobody has taken yet.
pub(crate) struct Pieces {
    left: Mutex<Left>,
}

struct Left {
    /// Weights that nobody has begun, the next one last.
    unbegun: Vec<usize>,
    /// Of each weight the first piece that is left, and the end.
    of_weight: Vec<(u64, u64)>,
}

impl Pieces {
    /// All pieces of weights, of which each has some bytes and is cut into some pieces.
    pub(crate) fn new(weights: &[(u64, u64)]) -> Self {
        let mut unbegun: Vec<usize> = (0..weights.len()).collect();
        // Of equal ones the first comes first.
        unbegun.sort_by_key(|index| (weights[*index].0, Reverse(*index)));
        let of_weight = weights.iter().map(|(_, pieces)| (0, *pieces)).collect();
        Self { left: Mutex::new(Left { unbegun, of_weight }) }
    }

    /// Takes a piece for a thread that has begun the weight `own`, which changes with the next that it begins.
    /// The pieces of a weight are taken in ascending order.
    pub(crate) fn take(&self, own: &mut Option<usize>) -> Option<Piece> {
        let mut left = self.lock();
        let Left { unbegun, of_weight } = &mut *left;
        let count = |weight: usize| of_weight.get(weight).map_or(0, |(next, end)| end - next);
        let weight = match own.filter(|weight| count(*weight) > 0) {
            Some(weight) => weight,
            None => match unbegun.pop() {
                Some(weight) => *own.insert(weight),
                None => (0..of_weight.len())
                    .filter(|weight| count(*weight) > 0)
                    .max_by_key(|weight| count(*weight))?,
            },
        };
        let (next, _) = of_weight.get_mut(weight)?;
        *next += 1;
        Some(Piece { weight, index: *next - 1 })
    }

    /// Leaves nothing to take.
    pub(crate) fn drop_all(&self) {
        let mut left = self.lock();
        left.unbegun.clear();
        left.of_weight.clear();
    }

    fn lock(&self) -> MutexGuard<'_, Left> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::{Piece, Pieces};

    #[test]
    fn each_thread_begins_a_weight_of_its_own_and_helps_when_all_are_begun() {
        // Bytes and pieces.
        let pieces = Pieces::new(&[(10, 1), (50, 5), (50, 5), (20, 2)]);
        let (mut first, mut second) = (None, None);
        let take = |own: &mut Option<usize>| pieces.take(own).map(|Piece { weight, index }| (weight, index));
        assert_eq!(take(&mut first), Some((1, 0)));
        assert_eq!(take(&mut second), Some((2, 0)));
        for index in 1..5 {
            assert_eq!(take(&mut second), Some((2, index)));
        }
        assert_eq!([(); 3].map(|()| take(&mut second)), [Some((3, 0)), Some((3, 1)), Some((0, 0))]);
        assert_eq!(take(&mut second), Some((1, 1)), "the other thread's");
        assert_eq!(take(&mut first), Some((1, 2)));
        assert_eq!(take(&mut second), Some((1, 3)));
        assert_eq!(take(&mut second), Some((1, 4)));
        assert_eq!([take(&mut first), take(&mut second)], [None, None]);
    }

    #[test]
    fn nothing_is_left_when_all_is_dropped() {
        let pieces = Pieces::new(&[(10, 2), (10, 2)]);
        let mut own = None;
        assert_eq!(pieces.take(&mut own), Some(Piece { weight: 0, index: 0 }));
        pieces.drop_all();
        assert_eq!(pieces.take(&mut own), None);
    }
}
