//! Keys of numbers. Whole numbers that fit 64 bits are written as such, which is the common case. Any other finite one
//! is written as `±r · 2^a · 5^b` with `r` prime to ten: by the fundamental theorem of arithmetic that is unique, so
//! equal values have equal keys without arithmetic beyond 128 bits.

use super::super::diff::raw::kind;
use super::Malformed;

/// Tags, from the type bytes: any whole 64-bit number, any other number, and what is no number.
const WHOLE: u8 = kind::INT64;
const FACTORED: u8 = kind::DECIMAL;
const SPECIAL: u8 = kind::DOUBLE;

const NAN: u8 = 0;
const PLUS_INFINITY: u8 = 1;
const MINUS_INFINITY: u8 = 2;

/// The largest coefficient of a decimal, 34 nines; a larger one counts as zero (IEEE 754-2008, 3.5.2).
const MAX_COEFFICIENT: u128 = 10_u128.pow(34) - 1;
const DECIMAL_BIAS: i32 = 6176;

/// `coefficient · 2^twos · 5^fives`.
struct Factors {
    negative: bool,
    coefficient: u128,
    twos: i32,
    fives: i32,
}

pub(super) fn append(kind: u8, value: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
    match (kind, value.len()) {
        (kind::INT32, 4) => whole(i64::from(i32::from_le_bytes(array(value)?)), out),
        (kind::INT64, 8) => whole(i64::from_le_bytes(array(value)?), out),
        (kind::DOUBLE, 8) => double(f64::from_le_bytes(array(value)?), out),
        (kind::DECIMAL, 16) => decimal(u128::from_le_bytes(array(value)?), out),
        _ => return Err(Malformed("number")),
    }
    Ok(())
}

fn array<const N: usize>(value: &[u8]) -> Result<[u8; N], Malformed> {
    value.try_into().map_err(|_| Malformed("number"))
}

fn whole(value: i64, out: &mut Vec<u8>) {
    out.push(WHOLE);
    out.extend_from_slice(&value.to_le_bytes());
}

fn infinity(negative: bool, out: &mut Vec<u8>) {
    let which = if negative { MINUS_INFINITY } else { PLUS_INFINITY };
    out.extend_from_slice(&[SPECIAL, which]);
}

fn double(value: f64, out: &mut Vec<u8>) {
    if value.is_nan() {
        out.extend_from_slice(&[SPECIAL, NAN]);
        return;
    }
    if value.is_infinite() {
        infinity(value < 0.0, out);
        return;
    }
    let bits = value.to_bits();
    let exponent = i32::from((bits >> 52) as u16 & 0x7FF);
    let mantissa = bits & ((1 << 52) - 1);
    // A subnormal has no implicit bit, and the exponent of the smallest normal ones.
    let (coefficient, exponent) = match exponent {
        0 => (mantissa, 1),
        _ => (mantissa | 1 << 52, exponent),
    };
    finite(
        Factors {
            negative: value.is_sign_negative(),
            coefficient: u128::from(coefficient),
            twos: exponent - 1075,
            fives: 0,
        },
        out,
    );
}

/// An IEEE 754-2008 decimal128 in the binary integer encoding.
fn decimal(bits: u128, out: &mut Vec<u8>) {
    let negative = bits >> 127 == 1;
    match bits >> 122 & 0x1F {
        0x1F => out.extend_from_slice(&[SPECIAL, NAN]),
        0x1E => infinity(negative, out),
        // The form for large coefficients: in 128 bits all of them are out of range.
        0x18..=0x1D => whole(0, out),
        _ => {
            let exponent = (bits >> 113) as i32 & 0x3FFF;
            let coefficient = bits & ((1 << 113) - 1);
            let coefficient = Some(coefficient).filter(|c| *c <= MAX_COEFFICIENT);
            let exponent = exponent - DECIMAL_BIAS;
            finite(Factors { negative, coefficient: coefficient.unwrap_or(0), twos: exponent, fives: exponent }, out);
        }
    }
}

fn finite(number: Factors, out: &mut Vec<u8>) {
    let Factors { negative, mut coefficient, mut twos, mut fives } = number;
    if coefficient == 0 {
        return whole(0, out);
    }
    let zeros = coefficient.trailing_zeros();
    coefficient >>= zeros;
    twos += zeros as i32;
    while coefficient.is_multiple_of(5) {
        coefficient /= 5;
        fives += 1;
    }
    if let Some(value) = as_whole(negative, coefficient, twos, fives) {
        return whole(value, out);
    }
    out.extend_from_slice(&[FACTORED, u8::from(negative)]);
    out.extend_from_slice(&coefficient.to_le_bytes());
    out.extend_from_slice(&twos.to_le_bytes());
    out.extend_from_slice(&fives.to_le_bytes());
}

fn as_whole(negative: bool, coefficient: u128, twos: i32, fives: i32) -> Option<i64> {
    let fives = 5_u128.checked_pow(u32::try_from(fives).ok()?)?;
    let twos = 2_u128.checked_pow(u32::try_from(twos).ok()?)?;
    let magnitude = coefficient.checked_mul(fives)?.checked_mul(twos)?;
    let magnitude = i128::try_from(magnitude).ok()?;
    i64::try_from(if negative { -magnitude } else { magnitude }).ok()
}
