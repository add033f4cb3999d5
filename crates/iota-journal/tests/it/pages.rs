//! Journals that are carried somewhere else in pages.

use iota_journal::{Entry, Head, Journal as _, MemoryDisk, Pager};

use crate::network::{Loop, genesis, next_command};

/// A journal that some miners have left, and its entries.
fn lived() -> (MemoryDisk, Vec<Entry>) {
    let disk = MemoryDisk::default();
    let mut network = Loop::begin(disk.open(), &genesis(2)).unwrap();
    for turn in 0..300 {
        // What is refused leaves no entry.
        drop(network.command(&next_command(&network.state, turn)));
    }
    let entries = disk.open().entries_after(0, usize::MAX).unwrap();
    assert!(entries.len() > 100, "{} entries", entries.len());
    (disk, entries)
}

/// Its pages, with so many entries each, and the head after the last.
fn pages(disk: &MemoryDisk, entries: &[Entry], each: usize) -> (Vec<Vec<u8>>, Head) {
    let mut pager = Pager::new(Head::of(&disk.open().genesis().unwrap().unwrap()));
    let mut pages = Vec::new();
    for entries in entries.chunks(each) {
        entries.iter().for_each(|entry| pager.add(entry));
        pages.push(pager.page());
        pager.turn();
    }
    (pages, pager.head())
}

#[test]
fn a_journal_comes_back_from_its_pages_however_they_were_cut() {
    let (disk, entries) = lived();
    let genesis = disk.open().genesis().unwrap().unwrap();
    for each in [1, 7, entries.len()] {
        let (pages, last) = pages(&disk, &entries, each);
        let mut head = Head::of(&genesis);
        let copy = MemoryDisk::default();
        let mut journal = copy.open();
        journal.begin(&genesis).unwrap();
        for page in &pages {
            journal.append(&head.read(page).unwrap()).unwrap();
        }
        assert_eq!(head, last);
        assert_eq!(head.sequence, entries.len() as u64);
        assert_eq!(copy.open().entries_after(0, usize::MAX).unwrap(), entries);
        let recovered = iota_journal::recover(&copy.open()).unwrap();
        assert_eq!(recovered, iota_journal::recover(&disk.open()).unwrap());
    }
}

#[test]
fn pages_that_are_missing_exchanged_or_of_another_run_lead_to_another_head() {
    let (disk, entries) = lived();
    let genesis = disk.open().genesis().unwrap().unwrap();
    let (pages, last) = pages(&disk, &entries, entries.len() / 4);
    let read = |start: Head, order: &[usize]| {
        let mut head = start;
        for page in order {
            head.read(&pages[*page]).unwrap();
        }
        head
    };
    let whole: Vec<usize> = (0..pages.len()).collect();
    assert_eq!(read(Head::of(&genesis), &whole), last);
    assert_ne!(read(Head::of(&genesis), &whole[1..]), last);
    let mut exchanged = whole.clone();
    exchanged.swap(0, 1);
    assert_ne!(read(Head::of(&genesis), &exchanged), last);
    let mut other = genesis;
    other.settings.secret[0] ^= 1;
    assert_ne!(read(Head::of(&other), &whole), last);
}

#[test]
fn bytes_that_are_no_page_are_refused_and_change_nothing() {
    let (disk, entries) = lived();
    let (pages, _) = pages(&disk, &entries, entries.len());
    let start = Head::of(&disk.open().genesis().unwrap().unwrap());
    let cut = &pages[0][..pages[0].len() / 2];
    for bytes in [&b""[..], b"\x07something", cut] {
        let mut head = start;
        assert!(head.read(bytes).is_err());
        assert_eq!(head, start);
    }
}
