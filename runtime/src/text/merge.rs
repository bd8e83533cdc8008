//! Byte-pair merging inside one piece, O(n log n) in its length.

use qwen2c_format::tokenizer::TokenizerView;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Marks the end of the list of symbols.
const NONE: u32 = u32::MAX;

/// A token in the making, linked to its neighbours.
#[derive(Clone, Copy, Debug)]
struct Symbol {
    id: u32,
    previous: u32,
    next: u32,
    /// Merged into its left neighbour.
    is_gone: bool,
}

/// Buffers for merging, kept between pieces.
#[derive(Debug, Default)]
pub(super) struct Merger {
    symbols: Vec<Symbol>,
    /// (rank, position of the left symbol, merged id); the lowest rank first, then the leftmost.
    queue: BinaryHeap<Reverse<(u32, u32, u32)>>,
}

impl Merger {
    /// Appends the tokens of `piece` to `out`.
    ///
    /// An entry of the queue whose pair has changed meanwhile is dropped unless the new pair becomes the same
    /// token: exactly what `tokenizers` does, so that odd merge lists give the same ids too.
    pub(super) fn merge(&mut self, view: &TokenizerView<'_>, piece: &[u8], out: &mut Vec<u32>) {
        if view.ignores_merges()
            && let Some(id) = view.word(piece)
        {
            out.push(id);
            return;
        }
        self.start(view, piece);
        while let Some(Reverse((_, at, merged))) = self.queue.pop() {
            let left = self.symbols[at as usize];
            if left.is_gone || left.next == NONE {
                continue;
            }
            let right = self.symbols[left.next as usize];
            if view.merge(left.id, right.id).is_none_or(|merge| merge.merged != merged) {
                continue;
            }
            self.symbols[left.next as usize].is_gone = true;
            if right.next != NONE {
                self.symbols[right.next as usize].previous = at;
            }
            let symbol = &mut self.symbols[at as usize];
            symbol.id = merged;
            symbol.next = right.next;
            self.consider(view, left.previous);
            self.consider(view, at);
        }
        out.extend(self.symbols.iter().filter(|symbol| !symbol.is_gone).map(|symbol| symbol.id));
    }

    /// One symbol per byte, and every pair that merges in the queue.
    fn start(&mut self, view: &TokenizerView<'_>, piece: &[u8]) {
        self.symbols.clear();
        self.queue.clear();
        for id in piece.iter().filter_map(|&byte| view.byte_id(byte)) {
            let at = self.symbols.len() as u32;
            if let Some(last) = self.symbols.last_mut() {
                last.next = at;
            }
            self.symbols.push(Symbol {
                id,
                previous: at.checked_sub(1).unwrap_or(NONE),
                next: NONE,
                is_gone: false,
            });
        }
        for at in 0..self.symbols.len() as u32 {
            self.consider(view, at);
        }
    }

    /// Queues the merge of the symbol at `at` with its right neighbour, where there is one.
    fn consider(&mut self, view: &TokenizerView<'_>, at: u32) {
        let Some(&left) = self.symbols.get(at as usize) else { return };
        let Some(&right) = self.symbols.get(left.next as usize) else { return };
        if let Some(merge) = view.merge(left.id, right.id) {
            self.queue.push(Reverse((merge.rank, at, merge.merged)));
        }
    }
}
