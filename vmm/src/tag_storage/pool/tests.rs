#![allow(clippy::unwrap_used)]

mod adopting;
mod fairness;
mod histories;
mod interleavings;
mod least;
mod lending;
mod model;
mod requests;

use std::sync::Arc;

use arch::mte::geometry::Geometry;
use arch::units::Bytes;

use super::counters::Counters;
use super::pressure::CanGive;
use super::requests::Order;
use super::status::{BlocksReport, ChunksReport};
use super::testing::fake::{Fake, Shared};
use super::testing::{Bench, terms};
use super::*;

fn numbers(slots: &[SlotIndex]) -> Vec<u32> {
    slots.iter().map(|slot| slot.0).collect()
}
