//! What is remembered of every byte: who wrote it last, and who read it since.
//!
//! Memory is divided into pages, and a page into cells as large as the smallest access it has seen, at most 16
//! bytes; so weights that are read 16 bytes at a time cost little, and neighbours that are written one by one are
//! told apart all the same.

use super::{Epoch, Knowledge};

const PAGE_BYTES: usize = 1024;
/// Logarithm of the bytes of the largest cell.
const LARGEST_SHIFT: u32 = 4;
/// In place of a reader: threads of several blocks, between which nothing in the kernel makes an order.
const READ_BY_BLOCKS: u64 = u64::MAX;
/// In place of a reader: the number of a list of readers. No clock gets so far.
const LISTED: u64 = 0xffff_ffff << 32;

/// What a thread does to bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Touch {
    Read,
    /// A read that promises that nobody writes while the kernel runs.
    ReadConstant,
    Write,
}

/// The thread that accesses.
pub(crate) struct Observer<'thread> {
    pub(crate) epoch: Epoch,
    pub(crate) knowledge: &'thread Knowledge,
    /// Line of the instruction.
    pub(crate) line: u32,
    /// Whether the kernel has anything that orders blocks.
    pub(crate) blocks_synchronise: bool,
}

/// An earlier access that nothing puts before this one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Conflict {
    pub(crate) wrote: bool,
    /// Who it was; `None` for threads of several blocks.
    pub(crate) epoch: Option<Epoch>,
    pub(crate) line: u32,
}

#[derive(Clone, Copy, Debug, Default)]
struct Cell {
    write: u64,
    read: u64,
    write_line: u32,
    read_line: u32,
}

#[derive(Debug)]
struct Page {
    generation: u32,
    shift: u32,
    cells: Vec<Cell>,
}

/// The accesses of one launch to one allocation.
#[derive(Debug, Default)]
pub(crate) struct Shadow {
    generation: u32,
    pages: Vec<Option<Box<Page>>>,
    lists: Lists,
    /// Bytes that were read before anything else, and bytes that were written, since somebody asked.
    fresh: Fresh,
}

/// Bytes that were accessed for the first time.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Fresh {
    pub(crate) read_bytes: u64,
    pub(crate) written_bytes: u64,
}

impl Shadow {
    /// Checks an access and remembers it; `generation` numbers the launch.
    #[inline]
    pub(crate) fn touch(
        &mut self,
        generation: u32,
        start: usize,
        length: usize,
        touch: Touch,
        observer: &Observer<'_>,
    ) -> Result<(), Conflict> {
        if self.generation != generation {
            self.generation = generation;
            self.lists = Lists::default();
            self.fresh = Fresh::default();
        }
        let number = start / PAGE_BYTES;
        if number >= self.pages.len() {
            self.pages.resize_with(number + 1, || None);
        }
        let page = self.pages[number].get_or_insert_with(|| Page::new(generation));
        page.prepare(generation, (start | length).trailing_zeros().min(LARGEST_SHIFT), &mut self.lists);
        let first = (start % PAGE_BYTES) >> page.shift;
        for cell in &mut page.cells[first..first + (length >> page.shift)] {
            let lists = &mut self.lists;
            if cell.write == 0 {
                let bytes = 1 << page.shift;
                match touch {
                    Touch::Write => self.fresh.written_bytes += bytes,
                    _ if cell.read == 0 => self.fresh.read_bytes += bytes,
                    _ => {}
                }
            }
            match touch {
                Touch::Read => cell.read(observer, lists)?,
                Touch::ReadConstant if cell.write != 0 => return Err(cell.writer()),
                Touch::ReadConstant => cell.read(observer, lists)?,
                Touch::Write => cell.write(observer, lists)?,
            }
        }
        Ok(())
    }
}

impl Shadow {
    /// Bytes of the launch numbered `generation` that were accessed for the first time.
    pub(crate) fn fresh(&self, generation: u32) -> Fresh {
        if self.generation == generation { self.fresh } else { Fresh::default() }
    }
}

impl Page {
    fn new(generation: u32) -> Box<Page> {
        let cells = vec![Cell::default(); PAGE_BYTES >> LARGEST_SHIFT];
        Box::new(Page { generation, shift: LARGEST_SHIFT, cells })
    }

    /// Forgets other launches, and divides cells that are larger than an access.
    #[inline]
    fn prepare(&mut self, generation: u32, shift: u32, lists: &mut Lists) {
        if self.generation != generation {
            self.generation = generation;
            self.cells.fill(Cell::default());
        }
        if self.shift > shift {
            self.divide(shift, lists);
        }
    }

    #[cold]
    fn divide(&mut self, shift: u32, lists: &mut Lists) {
        let times = 1 << (self.shift - shift);
        let mut cells = Vec::with_capacity(self.cells.len() * times);
        for cell in &self.cells {
            cells.push(*cell);
            // Every part has its own list of readers.
            cells.extend((1..times).map(|_| Cell { read: lists.copy(cell.read), ..*cell }));
        }
        self.cells = cells;
        self.shift = shift;
    }
}

/// Lists of readers, and those of them that are free.
#[derive(Debug, Default)]
struct Lists {
    lists: Vec<Vec<Epoch>>,
    free: Vec<usize>,
}

impl Lists {
    /// What stands in place of a reader in another cell that was read by the same threads.
    fn copy(&mut self, read: u64) -> u64 {
        let Some(number) = list_of(read) else { return read };
        let readers = self.lists[number].clone();
        self.lists.push(readers);
        LISTED | (self.lists.len() - 1) as u64
    }

    fn new_list(&mut self, readers: [Epoch; 2]) -> u64 {
        let number = self.free.pop().unwrap_or_else(|| {
            self.lists.push(Vec::new());
            self.lists.len() - 1
        });
        self.lists[number].clear();
        self.lists[number].extend(readers);
        LISTED | number as u64
    }
}

/// Number of the list that stands in place of a reader.
fn list_of(read: u64) -> Option<usize> {
    (read >= LISTED && read != READ_BY_BLOCKS).then_some((read & 0xffff_ffff) as usize)
}

impl Observer<'_> {
    /// Whether an access lies before this one, or both may happen at once.
    #[inline(always)]
    fn allows(&self, earlier: Epoch) -> bool {
        earlier.is_of_same_thread(self.epoch)
            || (earlier.is_atomic() && self.epoch.is_atomic())
            || self.knowledge.covers(earlier)
    }
}

impl Cell {
    fn writer(&self) -> Conflict {
        Conflict { wrote: true, epoch: Some(Epoch(self.write)), line: self.write_line }
    }

    #[inline(always)]
    fn read(&mut self, observer: &Observer<'_>, lists: &mut Lists) -> Result<(), Conflict> {
        let mine = observer.epoch;
        if self.write != 0 && !observer.allows(Epoch(self.write)) {
            return Err(self.writer());
        }
        let earlier = Epoch(self.read);
        if self.read == 0 || (self.read < LISTED && earlier.is_of_same_thread(mine)) {
            self.read = mine.0;
        } else if self.read == READ_BY_BLOCKS {
            return Ok(());
        } else if let Some(number) = list_of(self.read) {
            let list = &mut lists.lists[number];
            let is_elsewhere = list[0].block() != mine.block();
            let is_plain = !list[0].is_atomic() && !mine.is_atomic();
            if is_elsewhere && is_plain && !observer.blocks_synchronise {
                lists.free.push(number);
                self.read = READ_BY_BLOCKS;
            } else {
                add(list, observer);
            }
        } else if observer.knowledge.covers(earlier) {
            self.read = mine.0;
        } else if earlier.block() != mine.block()
            && !(earlier.is_atomic() || mine.is_atomic() || observer.blocks_synchronise)
        {
            self.read = READ_BY_BLOCKS;
        } else {
            self.read = lists.new_list([earlier, mine]);
        }
        self.read_line = observer.line;
        Ok(())
    }

    #[inline(always)]
    fn write(&mut self, observer: &Observer<'_>, lists: &mut Lists) -> Result<(), Conflict> {
        if self.write != 0 && !observer.allows(Epoch(self.write)) {
            return Err(self.writer());
        }
        if self.read != 0 {
            let conflict = |epoch| Conflict { wrote: false, epoch, line: self.read_line };
            if self.read == READ_BY_BLOCKS {
                return Err(conflict(None));
            }
            match list_of(self.read) {
                Some(number) => {
                    if let Some(reader) = lists.lists[number].iter().find(|reader| !observer.allows(**reader))
                    {
                        return Err(conflict(Some(*reader)));
                    }
                    lists.free.push(number);
                }
                None if !observer.allows(Epoch(self.read)) => return Err(conflict(Some(Epoch(self.read)))),
                None => {}
            }
        }
        self.write = observer.epoch.0;
        self.write_line = observer.line;
        self.read = 0;
        Ok(())
    }
}

/// Adds a reader, in place of what it read before.
fn add(list: &mut Vec<Epoch>, observer: &Observer<'_>) {
    let mine = observer.epoch;
    // A reader that comes again came mostly just before.
    let recent = list.len().saturating_sub(64);
    match list[recent..].iter_mut().rev().find(|reader| reader.is_of_same_thread(mine)) {
        Some(reader) => *reader = mine,
        None => {
            if list.len() == list.capacity() && list.len() >= 1024 {
                // Whoever must come after this one must come after those before it.
                list.retain(|reader| !observer.knowledge.covers(*reader));
                list.sort_unstable_by_key(|reader| {
                    (reader.block(), reader.thread(), std::cmp::Reverse(reader.0))
                });
                list.dedup_by(|later, earlier| later.is_of_same_thread(*earlier));
            }
            list.push(mine);
        }
    }
}
