//! Numbers of 16 and 32 bits.

use crate::half::{narrow, widen};

/// The exponent of numbers that are not finite.
const INFINITE: u16 = 0x7c00;

/// A type of floating-point numbers, as files and packed weights hold them, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Float {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of a float32.
    Bf16,
}

impl Float {
    /// Bytes of one number.
    pub const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// The number of its bytes.
    ///
    /// # Panics
    ///
    /// There are fewer bytes.
    #[inline]
    pub fn decode_one(self, bytes: &[u8]) -> f32 {
        match self {
            Self::F32 => f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
            Self::F16 => f16_to_f32(u16::from_le_bytes([bytes[0], bytes[1]])),
            Self::Bf16 => f32::from_bits(u32::from(u16::from_le_bytes([bytes[0], bytes[1]])) << 16),
        }
    }

    /// All numbers of some bytes.
    pub fn decode(self, bytes: &[u8]) -> Vec<f32> {
        bytes.chunks_exact(self.size()).map(|bytes| self.decode_one(bytes)).collect()
    }

    /// Appends the bytes of a number, rounded to the nearest.
    pub fn encode_onto(self, x: f32, bytes: &mut Vec<u8>) {
        match self {
            Self::F32 => bytes.extend(x.to_le_bytes()),
            Self::F16 => bytes.extend(narrow(x).to_le_bytes()),
            Self::Bf16 => bytes.extend(((bfloat16(x).to_bits() >> 16) as u16).to_le_bytes()),
        }
    }

    /// The bytes of a number, rounded to the nearest.
    pub fn encode(self, x: f32) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(4);
        self.encode_onto(x, &mut bytes);
        bytes
    }
}

/// A finite number rounded to the nearest of bfloat16.
#[inline]
pub fn bfloat16(x: f32) -> f32 {
    let bits = x.to_bits();
    f32::from_bits(bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & 0xffff_0000)
}

/// IEEE half precision as float32.
pub fn f16_to_f32(half: u16) -> f32 {
    if half & INFINITE == INFINITE {
        return f32::from_bits(u32::from(half >> 15) << 31 | 0xff << 23 | (u32::from(half) & 0x3ff) << 13);
    }
    widen(half)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_precision_may_be_infinite() {
        for bits in 0..=u16::MAX {
            let (wide, finite) = (f16_to_f32(bits), bits & INFINITE != INFINITE);
            assert_eq!(wide.is_finite(), finite, "{bits:#06x}");
            assert_eq!(wide.is_nan(), !finite && bits & 0x3ff != 0, "{bits:#06x}");
            assert_eq!(wide.is_sign_negative(), bits >> 15 == 1, "{bits:#06x}");
            assert!(!finite || wide == widen(bits), "{bits:#06x}");
        }
    }

    #[test]
    fn every_type_gives_back_what_it_was_given() {
        for (float, x) in
            [(Float::F32, 0.1), (Float::F16, 0.099_975_586), (Float::Bf16, 0.100_097_656), (Float::Bf16, -3.5)]
        {
            assert_eq!(float.decode(&float.encode(x)), [x]);
            assert_eq!(float.encode(x).len(), float.size());
        }
        assert_eq!(Float::Bf16.decode(&Float::Bf16.encode(0.1)), [0.100_097_656]);
    }
}
