use crate::segment::*;
use dflow_proto::ids::{Extent, SegmentId};
use std::fs::File;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

fn extent(offset: u64, bytes: u64) -> Extent {
    Extent { segment: SegmentId(3), offset, bytes }
}

#[test]
fn two_maps_see_the_same_words() {
    let segment = Segment::create(SegmentId(3), "test", 16384).expect("a memfd");
    let node = segment.map_node().expect("maps");
    let reader = segment.map_readonly().expect("maps");
    let writer = node.part_mut(extent(4096, 64)).expect("in bounds");
    writer.word(4).store(7, Ordering::Release);
    writer.copy_in(8, b"hello");
    let part = reader.part(extent(4096, 64)).expect("in bounds");
    assert_eq!(part.word(4).load(Ordering::Acquire), 7);
    let mut text = [0; 5];
    part.copy_out(8, &mut text);
    assert_eq!(&text, b"hello");
    assert!(reader.part_mut(extent(0, 8)).is_err(), "a read-only map gives no writable part");
}

#[test]
fn whatever_an_extent_claims_is_checked() {
    let segment = Segment::create(SegmentId(3), "test", 8192).expect("a memfd");
    let map = segment.map_readonly().expect("maps");
    for (offset, bytes) in [(8192, 1), (0, 8193), (u64::MAX, 2), (4, u64::MAX), (4, 8)] {
        assert!(map.part(extent(offset, bytes)).is_err(), "{offset}+{bytes}");
    }
    assert!(map.part(Extent { segment: SegmentId(4), offset: 0, bytes: 8 }).is_err());
    assert!(map.pointer(extent(8192, 0)).is_ok(), "an empty extent at the end is inside");
}

#[test]
fn the_size_cannot_change_once_fixed() {
    let mut segment = Segment::create(SegmentId(1), "test", 8192).expect("a memfd");
    segment.fix_size(5000).expect("shrinks and seals");
    assert_eq!(segment.bytes(), 5000);
    assert!(segment.cut(4096).is_err(), "sealed against shrinking");
    assert!(segment.cut(9000).is_err(), "sealed against growing");
    let again = Segment::from_fd(SegmentId(1), segment.reopen_readonly().expect("reopens"), 6000);
    assert!(matches!(again, Err(SegmentError::Short { have_bytes: 5000, need_bytes: 6000, .. })));
}

#[test]
fn a_window_opens_and_closes() {
    let segment = Segment::create(SegmentId(3), "test", 16384).expect("a memfd");
    let window = segment.window().expect("maps");
    let part = window.open(extent(4096, 4096)).expect("opens");
    part.word(0).store(9, Ordering::Relaxed);
    window.close(extent(4096, 4096)).expect("closes");
    let reader = segment.map_readonly().expect("maps");
    assert_eq!(reader.part(extent(4096, 8)).expect("in bounds").word(0).load(Ordering::Relaxed), 9);
    assert!(window.open(extent(100, 10)).is_err(), "not on a page boundary");
    // What a write through the closed window does: the kernel refuses it for us as it would for the
    // processor.
    let zeros = File::open("/dev/zero").expect("opens");
    let error = part.read_from(0, zeros.as_fd()).expect_err("nothing is writable there");
    assert_eq!(error.raw_os_error(), Some(libc::EFAULT));
}
