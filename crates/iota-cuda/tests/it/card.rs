use std::sync::Arc;

use iota_cuda::conformance::{Operation, small};
use iota_cuda::driver::{Address, Driver as _};
use iota_cuda::{Card, Cuda, Error, Pieces};
use iota_model::Precision;

use crate::emulator::stand_in_for_nvidia;

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
            let allowed = match operation {
                Operation::Attention(_) | Operation::CrossEntropy { .. }
                    if precision == Precision::Bf16 =>
                {
                    6e-3
                }
                _ => 3e-6,
            };
            for outcome in operation.run(&device, precision, 5).unwrap() {
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

/// Pinned pieces are two, and whoever takes one must wait for the copy that was to read it.
#[test]
#[expect(unsafe_code, reason = "a driver is given addresses")]
fn copies_in_between_leave_an_upload_alone_that_nobody_has_waited_for() {
    let Some(card) = card() else {
        return;
    };
    let [there, here] = [(); 2].map(|()| card.allocate(8).unwrap());
    let mut back = [0; 8];
    // SAFETY: as many bytes are allocated, and are given back when they are done with.
    unsafe {
        card.upload(here, &[7; 8]).unwrap();
        let read = card.mark().unwrap();
        let landed = card.begin_upload(there, &[1; 8], Some(read)).unwrap();
        for _ in 0..3 {
            card.download(&mut back, here).unwrap();
            assert_eq!(back, [7; 8]);
        }
        card.wait(landed).unwrap();
        let leaving = card.begin_download(there, 8).unwrap();
        card.finish_download(&mut back, leaving).unwrap();
        for place in [there, here] {
            card.release(place, 8);
        }
    }
    assert_eq!(back, [1; 8]);
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
