//! float16 numbers, by their bits.

/// A finite number as float32: exact.
#[inline(always)]
pub fn widen(half: u16) -> f32 {
    // Moving the bits leaves an exponent that is 112 too small, and subnormals stay subnormals.
    let magnitude = f32::from_bits(u32::from(half & 0x7fff) << 13) * f32::from_bits((112 + 127) << 23);
    f32::from_bits(magnitude.to_bits() | u32::from(half & 0x8000) << 16)
}

/// The nearest finite float16 number, of two the even one.
pub fn narrow(x: f32) -> u16 {
    let sign = (x.to_bits() >> 16 & 0x8000) as u16;
    let magnitude = x.abs().min(65504.0);
    if magnitude < 6.103_515_6e-5 {
        // A subnormal: a multiple of 2⁻²⁴. The sum has these as its last place, and rounds to it.
        return sign | (magnitude + 0.5).to_bits() as u16;
    }
    // Half of the last place, or a little less when the bit before is even, carries into what stays.
    let bits = magnitude.to_bits();
    let rounded = bits + 0xfff + (bits >> 13 & 1);
    sign | ((rounded >> 13) - (112 << 10)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vector::{LANES, Vector};
    use crate::{Isa, dispatch};

    #[inline(always)]
    fn load_half<V: Vector>(from: &[u16; LANES], to: &mut [f32; LANES]) {
        V::load_half(from).store(to);
    }

    /// What the bits of a finite number mean, by the definition.
    fn value(half: u16) -> f64 {
        let (exponent, mantissa) = (i32::from(half >> 10 & 31), f64::from(half & 0x3ff));
        let magnitude = match exponent {
            0 => mantissa * 2f64.powi(-24),
            _ => (1024.0 + mantissa) * 2f64.powi(exponent - 25),
        };
        if half >> 15 == 1 { -magnitude } else { magnitude }
    }

    #[test]
    fn every_number_is_what_its_bits_say() {
        for first in (0..=u16::MAX).step_by(LANES).filter(|half| half & 0x7c00 != 0x7c00) {
            let from: &[u16; LANES] = &std::array::from_fn(|i| first + i as u16);
            for isa in Isa::available() {
                let to = &mut [0.0; LANES];
                dispatch!(isa, load_half(from: &[u16; LANES], to: &mut [f32; LANES]));
                for (half, wide) in from.iter().zip(to) {
                    assert_eq!(f64::from(*wide).to_bits(), value(*half).to_bits(), "{isa:?} {half:#06x}");
                    assert_eq!(narrow(*wide), *half);
                }
            }
        }
    }

    #[test]
    fn the_nearest_number_is_taken() {
        for half in 0..0x7bff {
            let (here, next) = (widen(half), widen(half + 1));
            let middle = (here + next) / 2.0;
            let even = half + (half & 1);
            for (x, want) in [(middle.next_down(), half), (middle, even), (middle.next_up(), half + 1)] {
                assert_eq!(narrow(x), want, "{x}");
                assert_eq!(narrow(-x), want | 0x8000, "{x}");
            }
        }
        assert_eq!([narrow(65504.0), narrow(65520.0), narrow(-1e38)], [0x7bff, 0x7bff, 0xfbff]);
        assert_eq!(narrow(1e-30), 0);
    }
}
