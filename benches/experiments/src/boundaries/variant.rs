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
const COMBINED_RATIOS: [usize; 3] = [32, 64, 128];

/// All that are compared, for a model of this width: the uncut model; stages that embed the tokens and hear nothing of
/// each other, which tells what the last of them is worth alone; all channels in every encoding; bottlenecks in
/// bf16; and in every encoding that is smaller than bf16 the widest bottlenecks that fit into 32, 64 and 128 times fewer
/// bytes.
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
    let kinds = [
        BoundaryKind::Iota,
        BoundaryKind::ResBm,
        BoundaryKind::Anchored,
    ];
    let bottlenecks = kinds.into_iter().flat_map(|kind| {
        let channels = RATIOS.map(|ratio| width / ratio);
        let possible = channels.into_iter().filter(|channels| *channels > 0);
        possible.map(move |channels| Variant {
            boundary: Boundary::new(kind, channels),
            wires: both(Wire::BF16),
        })
    });
    let smaller = |wire: &Wire| wire.bytes_per_token(width) < Wire::BF16.bytes_per_token(width);
    let pairs = COMBINED_RATIOS
        .into_iter()
        .flat_map(|ratio| kinds.map(|kind| (ratio, kind)));
    let combined = pairs.flat_map(|(ratio, kind)| {
        let bytes = Wire::BF16.bytes_per_token(width) / ratio as f64;
        let wires = Wire::ALL.into_iter().filter(smaller);
        wires.filter_map(move |wire| {
            let channels = widest(width, bytes, |channels| wire.bytes_per_token(channels))?;
            Some(Variant {
                boundary: Boundary::new(kind, channels),
                wires: both(wire),
            })
        })
    });
    let deaf = Variant {
        boundary: Boundary::new(BoundaryKind::Anchored, 1),
        wires: both(Wire::Nothing),
    };
    [uncut, deaf]
        .into_iter()
        .chain(all_channels)
        .chain(bottlenecks)
        .chain(combined)
        .collect()
}

/// The most channels, fewer than all, that take no more than so many bytes.
fn widest(width: usize, bytes: f64, bytes_per_token: impl Fn(usize) -> f64) -> Option<usize> {
    (1..width)
        .rev()
        .find(|channels| bytes_per_token(*channels) <= bytes)
}

impl Variant {
    /// Whether it is in one piece.
    pub(crate) const fn is_uncut(&self) -> bool {
        self.wires.is_none()
    }

    /// Whether it is what all others are compared with: cut like them, and everything crosses as it is.
    pub(crate) fn is_reference(&self) -> bool {
        let exact = Wires {
            forward: Wire::F32,
            backward: Wire::F32,
        };
        self.boundary == Boundary::None && self.wires == Some(exact)
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
            (BoundaryKind::Anchored, Some(wires)) => format!("anchored, {}", wires.forward),
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
            Boundary::Anchored { channels } => write!(formatter, "anchored {channels}")?,
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
    fn one_is_uncut_one_is_the_reference_and_all_bottlenecks_are_compared_at_every_ratio() {
        let variants = variants(256);
        let names: Vec<String> = variants.iter().map(Variant::to_string).collect();
        assert_eq!(variants.iter().filter(|v| v.is_uncut()).count(), 1);
        assert_eq!(variants.iter().filter(|v| v.is_reference()).count(), 1);
        for channels in [32, 4, 2] {
            for kind in ["iota", "resbm", "anchored"] {
                let name = format!("{kind} {channels}, bf16");
                assert!(names.contains(&name), "{name} in {names:?}");
            }
        }
    }

    #[test]
    fn a_combination_has_as_many_channels_as_fit_into_its_bytes() {
        // Four bits a channel, and a byte for the scale.
        let bytes = |channels: usize| channels as f64 / 2.0 + 1.0;
        assert_eq!(widest(256, 4.0, bytes), Some(6));
        assert_eq!(widest(256, 1.0, bytes), None);
        assert_eq!(widest(4, 1000.0, bytes), Some(3), "fewer than all channels");
    }
}
