use std::sync::Arc;

use iota_cuda::conformance::small;
use iota_cuda::driver::{Address, Driver as _};
use iota_cuda::{Card, Cuda, Error, Pieces};
use iota_model::Precision;

use crate::emulator::stand_in_for_nvidia;
use crate::operations::tolerance;

fn card() -> Option<Arc<Card>> {
    stand_in_for_nvidia().then(|| Card::open(0, None).unwrap())
}

/// Above all the products: rows and columns change places on the way to cuBLAS.
#[test]
fn operations_reach_the_driver_and_its_libraries_as_these_take_them() {
    let Some(card) = card() else {
        return;
    };
    for precision in [Precision::F32, Precision::Bf16] {
        let device = Cuda::on(card.clone(), precision).with_pieces(Pieces {
            queries: 16,
            scores: 4096,
            logits: 2000,
        });
        for operation in small() {
            for outcome in operation.run(&device, precision, 5).unwrap() {
                let allowed = tolerance(&operation, &outcome, precision);
                let (error, name) = (outcome.error(), outcome.name);
                assert!(error < allowed, "{name} of {operation:?} is {error:e} off");
            }
        }
    }
    card.synchronize().unwrap();
}

/// 4 MiB are pinned at a time.
#[test]
fn copies_of_many_pieces_arrive_whole_and_in_order() {
    let Some(card) = card() else {
        return;
    };
    for length in [0, 1, 4 << 20, (4 << 20) + 1, (13 << 20) - 3] {
        let values: Vec<u8> = (0..length).map(|i| (i * 7 + i / 251) as u8).collect();
        let mut back = vec![0; length];
        let at = card.allocate(length).unwrap();
        copy_there_and_back(&card, at, &values, &mut back);
        assert!(back == values, "{length} bytes");
    }
}

#[test]
#[expect(unsafe_code, reason = "a driver is given addresses")]
fn an_upload_comes_after_the_work_that_it_was_told_to_wait_for() {
    let Some(card) = card() else {
        return;
    };
    let [at, reader] = [(); 2].map(|()| card.allocate(8).unwrap());
    let mut read = [0; 8];
    // SAFETY: as many bytes are allocated, and are given back when they are done with.
    unsafe {
        card.upload(at, &[1; 8]).unwrap();
        card.synchronize().unwrap();
        card.copy(reader, at, 8).unwrap();
        let work = card.mark().unwrap();
        let landed = card.begin_upload(at, &[2; 8], Some(work)).unwrap();
        card.wait(landed).unwrap();
        card.download(&mut read, reader).unwrap();
        assert_eq!(read, [1; 8]);
        card.download(&mut read, at).unwrap();
        assert_eq!(read, [2; 8]);
        card.release(at, 8);
        card.release(reader, 8);
    }
}

/// The stand-in hands out first what it was given back.
#[test]
#[expect(unsafe_code, reason = "a driver is given addresses")]
fn memory_is_given_back_when_the_copies_that_were_begun_are_done_with_it() {
    let Some(card) = card() else {
        return;
    };
    let mut arrived = [0; 8];
    // SAFETY: as many bytes are allocated whenever something is asked for, and are given back when they are done with.
    unsafe {
        let first = card.allocate(8).unwrap();
        card.upload(first, &[1; 8]).unwrap();
        let leaving = card.begin_download(first, 8).unwrap();
        card.release(first, 8);
        let second = card.allocate(8).unwrap();
        let work = card.mark().unwrap();
        let landed = card.begin_upload(second, &[2; 8], Some(work)).unwrap();
        card.release(second, 8);
        let third = card.allocate(8).unwrap();
        card.upload(third, &[3; 8]).unwrap();
        card.wait(landed).unwrap();
        card.finish_download(&mut arrived, leaving).unwrap();
        assert_eq!(arrived, [1; 8]);
        card.download(&mut arrived, third).unwrap();
        assert_eq!(arrived, [3; 8]);
        card.release(third, 8);
    }
}

/// Pinned pieces are two, and whoever takes one must wait for the copy that is to read it.
#[test]
#[expect(unsafe_code, reason = "a driver is given addresses")]
fn a_copy_in_between_leaves_uploads_alone_that_nobody_has_waited_for() {
    let Some(card) = card() else {
        return;
    };
    let places @ [first, second, other] = [(); 3].map(|()| card.allocate(8).unwrap());
    let mut back = [0; 8];
    // SAFETY: as many bytes are allocated, and are given back when they are done with.
    unsafe {
        card.upload(other, &[7; 8]).unwrap();
        let uploads = [(first, [1; 8]), (second, [2; 8])];
        let landed = uploads.map(|(at, values)| {
            let work = card.mark().unwrap();
            card.begin_upload(at, &values, Some(work)).unwrap()
        });
        card.download(&mut back, other).unwrap();
        assert_eq!(back, [7; 8]);
        for upload in landed {
            card.wait(upload).unwrap();
        }
        for (at, values) in uploads {
            let leaving = card.begin_download(at, 8).unwrap();
            card.finish_download(&mut back, leaving).unwrap();
            assert_eq!(back, values);
        }
        for place in places {
            card.release(place, 8);
        }
    }
}

#[expect(unsafe_code, reason = "a driver is given addresses")]
fn copy_there_and_back(card: &Card, at: Address, values: &[u8], back: &mut [u8]) {
    // SAFETY: as many bytes are allocated, and are given back when they are done with.
    unsafe {
        card.upload(at, values).unwrap();
        card.download(back, at).unwrap();
        card.release(at, values.len());
    }
}

#[test]
fn a_full_card_says_how_much_is_left() {
    let Some(card) = card() else {
        return;
    };
    let free = card.free_bytes().unwrap();
    let Err(Error::OutOfMemory { bytes, free_bytes }) = card.allocate(free as usize + 1) else {
        panic!("there is no room for as much");
    };
    assert_eq!((bytes, free_bytes), (free + 1, free));
}

#[test]
fn a_card_that_is_not_there_is_refused() {
    let Some(card) = card() else {
        return;
    };
    assert_eq!(card.info().capability, (9, 0));
    let refused = Card::open(1, None).unwrap_err();
    assert!(matches!(
        refused,
        Error::NoSuchCard {
            ordinal: 1,
            cards: 1
        }
    ));
}
