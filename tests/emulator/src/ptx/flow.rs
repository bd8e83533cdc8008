//! Where lanes that part at a branch come together again: the immediate post-dominator.
//!
//! The hardware's own compiler puts the reconvergence of structured code there, and instructions that want a
//! whole warp rely on it.

use super::decode::{Control, Instruction, Operation};

/// No instruction: the lanes never meet again.
pub(crate) const NOWHERE: u32 = u32::MAX;

/// Writes into every branch where its lanes meet again.
pub(crate) fn note_reconvergence(code: &mut [Instruction]) {
    let starts = block_starts(code);
    let blocks = starts.len();
    // The block behind the last stands for the end of the thread.
    let block_of = |at: u32| starts.partition_point(|start| *start <= at) - 1;
    let mut successors: Vec<Vec<usize>> = Vec::with_capacity(blocks);
    for (block, _) in starts.iter().enumerate() {
        let last = starts.get(block + 1).map_or(code.len(), |next| *next as usize) - 1;
        let targets = successors_of(code, last);
        successors.push(match targets {
            Some(targets) => targets.into_iter().map(block_of).collect(),
            None => vec![blocks],
        });
        if leaves_partly(&code[last]) {
            successors[block].push(blocks);
        }
    }
    let dominators = immediate_post_dominators(&successors);
    for (at, instruction) in code.iter_mut().enumerate() {
        let block = block_of(at as u32);
        let meeting =
            dominators[block].filter(|found| *found < blocks).map_or(NOWHERE, |found| starts[found]);
        if let Operation::Control(
            Control::Branch { meeting: into, .. } | Control::Table { meeting: into, .. },
        ) = &mut instruction.operation
        {
            *into = meeting;
        }
    }
}

fn is_guarded(instruction: &Instruction) -> bool {
    instruction.guard.is_some()
}

/// Whether some lanes may end here while others go on.
fn leaves_partly(instruction: &Instruction) -> bool {
    is_guarded(instruction) && matches!(instruction.operation, Operation::Control(Control::Exit))
}

/// Instructions that may come after the one at `at`; `None` where the thread ends.
fn successors_of(code: &[Instruction], at: usize) -> Option<Vec<u32>> {
    let next = at as u32 + 1;
    let mut targets = match &code[at].operation {
        Operation::Control(Control::Branch { target, .. }) => vec![*target],
        Operation::Control(Control::Table { targets, .. }) => targets.clone(),
        Operation::Control(Control::Exit | Control::Trap) if !is_guarded(&code[at]) => return None,
        _ => vec![next],
    };
    if is_guarded(&code[at]) && !targets.contains(&next) {
        targets.push(next);
    }
    Some(targets)
}

fn block_starts(code: &[Instruction]) -> Vec<u32> {
    let mut is_start = vec![false; code.len() + 1];
    is_start[0] = true;
    for (at, instruction) in code.iter().enumerate() {
        match &instruction.operation {
            Operation::Control(Control::Branch { target, .. }) => {
                is_start[*target as usize] = true;
                is_start[at + 1] = true;
            }
            Operation::Control(Control::Table { targets, .. }) => {
                targets.iter().for_each(|target| is_start[*target as usize] = true);
                is_start[at + 1] = true;
            }
            Operation::Control(Control::Exit | Control::Trap) => is_start[at + 1] = true,
            _ => {}
        }
    }
    (0..code.len() as u32).filter(|at| is_start[*at as usize]).collect()
}

/// For every block the nearest block that all ways to the end pass; the end itself is `successors.len()`.
///
/// Cooper, Harvey and Kennedy's algorithm on the reversed graph.
fn immediate_post_dominators(successors: &[Vec<usize>]) -> Vec<Option<usize>> {
    let end = successors.len();
    let mut predecessors: Vec<Vec<usize>> = vec![Vec::new(); end + 1];
    for (block, targets) in successors.iter().enumerate() {
        targets.iter().for_each(|target| predecessors[*target].push(block));
    }
    let order = postorder(end, &predecessors);
    let mut rank = vec![usize::MAX; end + 1];
    order.iter().enumerate().for_each(|(position, block)| rank[*block] = position);
    let mut found: Vec<Option<usize>> = vec![None; end + 1];
    found[end] = Some(end);
    let mut changed = true;
    while changed {
        changed = false;
        for &block in order.iter().rev().filter(|block| **block != end) {
            let mut best: Option<usize> = None;
            for &target in &successors[block] {
                if found[target].is_some() {
                    best = Some(best.map_or(target, |other| intersect(target, other, &found, &rank)));
                }
            }
            changed |= found[block] != best;
            found[block] = best;
        }
    }
    found.truncate(end);
    found
}

fn intersect(first: usize, second: usize, found: &[Option<usize>], rank: &[usize]) -> usize {
    let (mut first, mut second) = (first, second);
    while first != second {
        while rank[first] < rank[second] {
            first = found[first].expect("a block that was visited");
        }
        while rank[second] < rank[first] {
            second = found[second].expect("a block that was visited");
        }
    }
    first
}

/// Blocks from which the end is reached, the end last.
fn postorder(end: usize, predecessors: &[Vec<usize>]) -> Vec<usize> {
    let mut order = Vec::new();
    let mut seen = vec![false; end + 1];
    let mut stack = vec![(end, 0)];
    seen[end] = true;
    while let Some((block, child)) = stack.pop() {
        if let Some(&next) = predecessors[block].get(child) {
            stack.push((block, child + 1));
            if !seen[next] {
                seen[next] = true;
                stack.push((next, 0));
            }
        } else {
            order.push(block);
        }
    }
    order
}
