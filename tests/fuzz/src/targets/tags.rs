//! The codec of tags: what was packed comes out again, and any bytes are tags or an error.
#![allow(clippy::unwrap_used)]

use arch::mte::codec::{
    from_runs, pack, packed_from_runs, packed_len, packed_to_runs, to_runs, unpack,
};

use crate::input::Input;

pub(super) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let (way, count) = (input.u8(), usize::from(input.u16()) % 5000);
    match way % 3 {
        0 => there_and_back(input.rest(), count),
        1 => any_runs(input.rest(), count),
        _ => {
            let tags = input.rest();
            let fine = tags.iter().all(|tag| *tag < 16);
            assert_eq!(pack(tags).is_ok(), fine);
            assert_eq!(to_runs(tags).is_ok(), fine);
            let mut unpacked = vec![0xff; count];
            assert_eq!(unpack(tags, &mut unpacked).is_ok(), tags.len() == packed_len(count));
        }
    }
}

/// Tags in runs as the bytes have them: all forms are the same tags.
fn there_and_back(bytes: &[u8], most: usize) {
    let packed: Vec<u8> = bytes
        .chunks(2)
        .flat_map(|pair| {
            let (tags, length) = (pair[0], pair.get(1).map_or(1, |length| length % 40));
            std::iter::repeat_n(tags, length.into())
        })
        .take(5000)
        .collect();
    let mut tags = vec![0xff; 2 * packed.len()];
    unpack(&packed, &mut tags).unwrap();
    assert_eq!(pack(&tags).unwrap(), packed);
    let expected = to_runs(&tags).unwrap();
    let mut runs = vec![7];
    let few = packed_to_runs(&packed, most, &mut runs);
    assert_eq!(few, expected.len() <= most);
    assert_eq!(&runs[1..], if few { &expected[..] } else { &[] });
    let (mut back, mut packed_back) = (vec![0xff; tags.len()], vec![0xff; packed.len()]);
    from_runs(&expected, &mut back).unwrap();
    packed_from_runs(&expected, &mut packed_back).unwrap();
    assert_eq!((back, packed_back), (tags, packed));
}

fn any_runs(runs: &[u8], count: usize) {
    let (mut tags, mut packed) = (vec![0; 2 * count], vec![0; count]);
    let (unpacked, direct) = (from_runs(runs, &mut tags), packed_from_runs(runs, &mut packed));
    assert_eq!(unpacked, direct);
    if direct.is_ok() {
        assert_eq!(pack(&tags).unwrap(), packed);
    }
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let page = to_runs(&[5; 256]).unwrap();
    let odd = to_runs(&[1, 2, 2, 3, 3, 3, 3]).unwrap();
    vec![
        [&[0, 0xff, 0][..], &[0x55, 30, 0x12, 3, 0xf0, 1]].concat(),
        [&[1, 128, 0][..], &page].concat(),
        [&[1, 4, 0][..], &odd, &[0x03]].concat(),
        [&[1, 4, 0][..], &[0xff; 9], &[1]].concat(),
        vec![2, 6, 0, 1, 2, 15],
        vec![2, 6, 0, 1, 16],
    ]
}
