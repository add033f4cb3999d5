//! What is compared.

use std::fmt;

use iota_model::{Boundary, BoundaryKind};

use crate::pipeline::Wires;
use crate::wire::Wire;

/// A model with its boundaries and what happens on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Variant {
    pub(crate) boundary: Boundary,
    /// `None`: the model is not cut.
    pub(crate) wires: Option<Wires>,
}

/// Fewer channels by these factors.
const RATIOS: [usize; 3] = [8, 64, 128];

/// Where a bottleneck and an encoding are combined, they are to send so many times fewer bytes than all channels as bf16.
const COMBINED_RATIO: usize = 128;

/// All that are compared, for a model of this width: the uncut model; all channels in every encoding; bottlenecks in
/// bf16; and in every encoding that is smaller than bf16 the widest bottlenecks that fit into 128 times fewer bytes.
pub(crate) fn variants(width: usize) -> Vec<Variant> {
    let both = |wire| {
        Some(Wires {
            forward: wire,
            backward: wire,
        })
    };
    let uncut = Variant {
        boundary: Boundary::None,
        wires: None,
    };
    let all_channels = Wire::ALL.map(|wire| Variant {
        boundary: Boundary::None,
        wires: both(wire),
    });
    let kinds = [BoundaryKind::Iota, BoundaryKind::ResBm];
    let bottlenecks = kinds.into_iter().flat_map(|kind| {
        let channels = RATIOS.map(|ratio| width / ratio);
        let possible = channels.into_iter().filter(|channels| *channels > 0);
        possible.map(move |channels| Variant {
            boundary: Boundary::new(kind, channels),
            wires: both(Wire::BF16),
        })
    });
    let smaller = |wire: &Wire| wire.bytes_per_token(width) < Wire::BF16.bytes_per_token(width);
    let bytes = Wire::BF16.bytes_per_token(width) / COMBINED_RATIO as f64;
    let combined = kinds.into_iter().flat_map(|kind| {
        let wires = Wire::ALL.into_iter().filter(smaller);
        wires.filter_map(move |wire| {
            let channels = (1..width)
                .rev()
                .find(|channels| wire.bytes_per_token(*channels) <= bytes)?;
            Some(Variant {
                boundary: Boundary::new(kind, channels),
                wires: both(wire),
            })
        })
    });
    [uncut]
        .into_iter()
        .chain(all_channels)
        .chain(bottlenecks)
        .chain(combined)
        .collect()
}

impl Variant {
    /// Whether it is what all others are compared with.
    pub(crate) const fn is_uncut(&self) -> bool {
        self.wires.is_none()
    }

    /// Channels that cross, of a model of this width.
    pub(crate) fn channels(&self, width: usize) -> usize {
        self.boundary.channels().unwrap_or(width)
    }

    /// Bytes per token and hop, forward and backward. `None` if there are no hops.
    pub(crate) fn bytes(&self, width: usize) -> Option<(f64, f64)> {
        let (wires, channels) = (self.wires?, self.channels(width));
        Some((
            wires.forward.bytes_per_token(channels),
            wires.backward.bytes_per_token(channels),
        ))
    }

    /// What it shares with the variants that a line in a plot joins it to.
    pub(crate) fn family(&self) -> String {
        match (self.boundary.kind(), self.wires) {
            (_, None) => "uncut".to_owned(),
            (BoundaryKind::None, _) => "all channels".to_owned(),
            (BoundaryKind::Iota, Some(wires)) => format!("iota, {}", wires.forward),
            (BoundaryKind::ResBm, Some(wires)) => format!("resbm, {}", wires.forward),
        }
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(wires) = self.wires else {
            return formatter.write_str("uncut");
        };
        match self.boundary {
            Boundary::None => formatter.write_str("all channels")?,
            Boundary::Iota { channels } => write!(formatter, "iota {channels}")?,
            Boundary::ResBm { channels } => write!(formatter, "resbm {channels}")?,
        }
        write!(formatter, ", {}", wires.forward)?;
        if wires.backward != wires.forward {
            write!(formatter, " and back {}", wires.backward)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_variant_has_a_name_of_its_own() {
        for width in [32, 256, 1024] {
            let variants = variants(width);
            let names: BTreeSet<String> = variants.iter().map(Variant::to_string).collect();
            assert_eq!(names.len(), variants.len(), "{names:?}");
        }
    }

    #[test]
    fn one_and_only_one_is_uncut_and_both_bottlenecks_are_compared_at_every_ratio() {
        let variants = variants(256);
        let names: Vec<String> = variants.iter().map(Variant::to_string).collect();
        assert_eq!(names.iter().filter(|name| *name == "uncut").count(), 1);
        for channels in [32, 4, 2] {
            for kind in ["iota", "resbm"] {
                let name = format!("{kind} {channels}, bf16");
                assert!(names.contains(&name), "{name} in {names:?}");
            }
        }
    }

    #[test]
    fn no_combination_takes_more_than_its_share_of_bytes() {
        for variant in variants(256) {
            let wire = variant.wires.map(|wires| wires.forward);
            if variant.boundary.is_bottleneck() && wire != Some(Wire::BF16) {
                let (forward, backward) = variant.bytes(256).unwrap();
                assert!(forward.max(backward) <= 4.0, "{variant}");
            }
        }
    }
}
