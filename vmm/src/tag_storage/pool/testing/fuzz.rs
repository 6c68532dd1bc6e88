//! The state machine of the pool against its model.

use arch::units::Bytes;

use super::model::{Model, SIZES, Step};

/// Steps of one execution; more find little and cost time.
const MOST_STEPS: usize = 60;

/// The sizes, how many chunks there are, and then steps.
pub(crate) fn pool(data: &[u8]) {
    let mut bytes = data.iter().copied();
    let mut next = || bytes.next();
    let (page, block) = SIZES[usize::from(next().unwrap_or(0)) % SIZES.len()];
    let options = next().unwrap_or(0);
    let chunks = 10 + u32::from(options >> 1) % 3;
    let mut model = Model::new(Bytes::kib(page), Bytes::new(block), chunks, options & 1 != 0);
    for _ in 0..MOST_STEPS {
        let Some(kind) = next() else { break };
        let mut number = |end: u32| u32::from(next().unwrap_or(0)) % end;
        let step = step(kind, &mut number);
        model.apply(step);
        model.check();
    }
}

fn step(kind: u8, number: &mut impl FnMut(u32) -> u32) -> Step {
    let lease = number(4) as usize;
    match kind % 16 {
        0 | 1 => Step::Open { lease, min: number(4), max: number(14) },
        2..=4 => Step::Reserve(lease),
        5 | 6 => Step::ReserveMany(lease, number(8)),
        7..=9 => Step::Free(lease, number(14)),
        10 => Step::Adopt(lease, (0..number(6)).map(|_| number(14)).collect()),
        11 => Step::Close(lease),
        12 => Step::Lend(if lease == 0 { u64::MAX } else { number(40).into() }),
        13 => match lease {
            0 => Step::RetryPinned,
            1 => Step::Broken(number(3) == 0),
            _ => Step::Busy(number(8)),
        },
        _ => Step::Pin((0..number(5)).map(|_| number(60).into()).collect()),
    }
}

/// Inputs that lead far.
pub(crate) fn pool_seeds() -> Vec<Vec<u8>> {
    let steps = [
        &[0, 0, 1, 12][..],
        &[0, 1, 0, 5],
        &[2, 0, 2, 1, 5, 0, 3],
        &[12, 0, 14, 0, 2, 3, 4],
        &[5, 1, 4, 7, 0, 0, 7, 0, 1],
        &[10, 1, 3, 0, 1, 2],
        &[13, 2, 3, 2, 0, 13, 0, 11, 0, 11, 1],
    ]
    .concat();
    let sizes = 0..SIZES.len() as u8;
    sizes.map(|sizes| [&[sizes, sizes], &steps[..]].concat()).collect()
}
