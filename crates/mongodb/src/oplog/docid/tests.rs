//! Cases by hand, then random numbers against exact arithmetic of any size.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use bson::{Bson, Decimal128, RawDocumentBuf, doc, rawdoc};
use proptest::prelude::*;

use super::{canonical_key, raw_id};

fn key(id: impl Into<Bson>) -> Vec<u8> {
    let doc = RawDocumentBuf::try_from(&doc! { "_id": id.into() }).unwrap();
    let (kind, value) = raw_id(doc.as_bytes()).unwrap().unwrap();
    let mut out = Vec::new();
    canonical_key(kind, value, &mut out).unwrap();
    out
}

fn decimal(text: &str) -> Bson {
    Bson::Decimal128(text.parse::<Decimal128>().unwrap())
}

fn decimal_bits(bits: u128) -> Bson {
    Bson::Decimal128(Decimal128::from_bytes(bits.to_le_bytes()))
}

/// Each row is one `_id` to the server, and all rows are different ones.
fn classes() -> Vec<Vec<Bson>> {
    let two_53 = 1_i64 << 53;
    vec![
        vec![1.into(), 1_i64.into(), 1.0.into(), decimal("1"), decimal("1.000"), decimal("10E-1")],
        vec![
            0.into(),
            0_i64.into(),
            0.0.into(),
            (-0.0).into(),
            decimal("0"),
            decimal("-0"),
            decimal("0E+99"),
            decimal_bits(10_u128.pow(34) | 0x3040 << 112),
            decimal_bits(0x6C10 << 112),
        ],
        vec![
            Bson::Double(f64::NAN),
            Bson::Double(-f64::NAN),
            Bson::Double(f64::from_bits(0x7FF0_0000_0000_0001)),
            decimal("NaN"),
            decimal_bits(0xFE00 << 112 | 5),
        ],
        vec![f64::INFINITY.into(), decimal("Infinity")],
        vec![f64::NEG_INFINITY.into(), decimal("-Infinity")],
        vec![0.1.into()],
        vec![decimal("0.1"), decimal("0.10")],
        vec![decimal("0.1000000000000000055511151231257827")],
        vec![0.5.into(), decimal("0.5"), decimal("0.50")],
        vec![(-0.5).into(), decimal("-0.5")],
        vec![two_53.into(), (two_53 as f64).into(), decimal("9007199254740992"), decimal("9.007199254740992E15")],
        vec![(two_53 + 1).into(), decimal("9007199254740993")],
        vec![i64::MAX.into(), decimal("9223372036854775807")],
        vec![9_223_372_036_854_775_808.0.into(), decimal("9223372036854775808")],
        vec![i64::MIN.into(), (-9_223_372_036_854_775_808.0).into(), decimal("-9223372036854775808")],
        vec![1e22.into(), decimal("1E22"), decimal("10000000000000000000000")],
        vec![decimal("1E400"), decimal("10E399")],
        vec![f64::MIN_POSITIVE.into()],
        vec![f64::from_bits(1).into()],
        vec![decimal("1E-6176")],
        vec!["a".into(), Bson::Symbol("a".into())],
        vec!["a\0".into()],
        vec!["".into()],
        vec![Bson::JavaScriptCode("a".into())],
        vec![Bson::Null],
        vec![Bson::Undefined],
        vec![Bson::MinKey],
        vec![Bson::MaxKey],
        vec![true.into()],
        vec![false.into()],
        vec![Bson::DateTime(bson::DateTime::from_millis(1))],
        vec![Bson::Timestamp(bson::Timestamp { time: 0, increment: 1 })],
        vec![bson::oid::ObjectId::from_bytes([0; 12]).into()],
        vec![doc! { "a": 1 }.into(), doc! { "a": 1.0 }.into()],
        vec![doc! { "b": 1 }.into()],
        vec![doc! {}.into()],
        vec![doc! { "a": { "x": [1, 2] } }.into(), doc! { "a": { "x": [1_i64, decimal("2.0")] } }.into()],
        vec![doc! { "a": { "x": [1] }, "y": 2 }.into()],
        vec![doc! { "a": { "x": [1], "y": 2 } }.into()],
        vec![doc! { "a": 1, "b": 2 }.into()],
        vec![doc! { "b": 2, "a": 1 }.into()],
        vec![Bson::Array(vec![1.into()]), Bson::Array(vec![1.0.into()])],
        vec![Bson::Array(vec![])],
        vec![Bson::Binary(bson::Binary { subtype: 0_u8.into(), bytes: vec![1] })],
        vec![Bson::Binary(bson::Binary { subtype: 5_u8.into(), bytes: vec![1] })],
        vec![
            Bson::JavaScriptCodeWithScope(bson::JavaScriptCodeWithScope { code: "a".into(), scope: doc! { "x": 1 } }),
            Bson::JavaScriptCodeWithScope(bson::JavaScriptCodeWithScope { code: "a".into(), scope: doc! { "x": 1.0 } }),
        ],
        vec![Bson::JavaScriptCodeWithScope(bson::JavaScriptCodeWithScope { code: "a".into(), scope: doc! {} })],
    ]
}

#[test]
fn equal_within_a_class_and_nowhere_else() {
    let classes = classes();
    for (row, class) in classes.iter().enumerate() {
        let first = key(class[0].clone());
        for id in class {
            assert_eq!(key(id.clone()), first, "{id:?} and {:?}", class[0]);
        }
        for other in &classes[..row] {
            assert_ne!(key(other[0].clone()), first, "{:?} and {:?}", other[0], class[0]);
        }
    }
}

#[test]
fn array_index_names_do_not_count() {
    let named = |name: &str| {
        let inner = RawDocumentBuf::try_from(&doc! { name: 7 }).unwrap();
        let mut out = Vec::new();
        canonical_key(4, inner.as_bytes(), &mut out).unwrap();
        out
    };
    assert_eq!(named("0"), named("x"));
}

#[test]
fn finds_the_id() {
    assert_eq!(raw_id(rawdoc! { "_id": 5 }.as_bytes()), Ok(Some((0x10, &5_i32.to_le_bytes()[..]))));
    assert_eq!(raw_id(rawdoc! { "a": "x", "_id": true }.as_bytes()), Ok(Some((8, &[1][..]))));
    assert_eq!(raw_id(rawdoc! { "a": { "_id": 1 } }.as_bytes()), Ok(None));
    assert!(raw_id(b"\x05\0\0\0").is_err());
    assert!(raw_id(b"").is_err());
}

/// `coefficient · 10^exponent` for decimals, `coefficient · 2^exponent` for doubles.
#[derive(Clone, Debug)]
struct Exact {
    negative: bool,
    coefficient: u128,
    twos: i32,
    fives: i32,
}

impl Exact {
    /// The digits, base 2^32, once both numbers are multiplied by what makes the exponents of both natural.
    fn scaled(&self, least_twos: i32, least_fives: i32) -> Vec<u32> {
        let mut digits: Vec<u32> = (0..4).map(|at| (self.coefficient >> (32 * at)) as u32).collect();
        let factors = [(2, self.twos - least_twos), (5, self.fives - least_fives)];
        for (factor, times) in factors {
            for _ in 0..times {
                let mut carry = 0;
                for digit in &mut digits {
                    carry += u64::from(*digit) * factor;
                    *digit = carry as u32;
                    carry >>= 32;
                }
                digits.push(carry as u32);
                while digits.last() == Some(&0) {
                    digits.pop();
                }
            }
        }
        while digits.last() == Some(&0) {
            digits.pop();
        }
        digits
    }

    fn same(&self, other: &Self) -> bool {
        let (twos, fives) = (self.twos.min(other.twos), self.fives.min(other.fives));
        let (mine, theirs) = (self.scaled(twos, fives), other.scaled(twos, fives));
        mine == theirs && (self.negative == other.negative || mine.is_empty())
    }
}

fn number() -> impl Strategy<Value = (Bson, Exact)> {
    let small =
        prop_oneof![0..20_i64, Just(1 << 53), Just((1 << 53) + 1), any::<i64>(), any::<i32>().prop_map(i64::from)];
    let whole = small.clone().prop_map(|n| {
        let exact = Exact { negative: n < 0, coefficient: u128::from(n.unsigned_abs()), twos: 0, fives: 0 };
        (Bson::Int64(n), exact)
    });
    let doubles = prop_oneof![
        small.prop_map(|n| n as f64),
        (-64..64_i32, -10..70_i32).prop_map(|(n, e)| f64::from(n) * f64::from(e).exp2()),
        any::<f64>().prop_filter("finite", |d| d.is_finite()),
    ];
    let double = doubles.prop_map(|d| {
        // Doubled or halved, which is exact, until it is a whole number that fits.
        let (mut twos, mut magnitude) = (0, d.abs());
        while magnitude != 0.0 && magnitude < 9e15 && magnitude.fract() != 0.0 {
            magnitude *= 2.0;
            twos -= 1;
        }
        while magnitude >= 18e18 {
            magnitude /= 2.0;
            twos += 1;
        }
        (Bson::Double(d), Exact { negative: d < 0.0, coefficient: magnitude as u128, twos, fives: 0 })
    });
    let coefficients = prop_oneof![0..2000_u128, Just(1 << 53), Just(10_u128.pow(33)), 0..10_u128.pow(34)];
    let decimal = (any::<bool>(), coefficients, prop_oneof![-40..40_i32, -6176..6112_i32]).prop_map(
        |(negative, coefficient, exponent)| {
            let bits = u128::from(negative) << 127 | ((exponent + 6176) as u128) << 113 | coefficient;
            (decimal_bits(bits), Exact { negative, coefficient, twos: exponent, fives: exponent })
        },
    );
    prop_oneof![whole, double, decimal]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn numbers_agree_with_exact_arithmetic(a in number(), b in number()) {
        prop_assert_eq!(key(a.0) == key(b.0), a.1.same(&b.1));
    }

    #[test]
    fn rescaled_decimals_are_equal(coefficient in 1..10_u128.pow(30), exponent in -6000..6000_i32, zeros in 0..5_u32) {
        let bits = |coefficient: u128, exponent: i32| decimal_bits(((exponent + 6176) as u128) << 113 | coefficient);
        let longer = coefficient * 10_u128.pow(zeros);
        prop_assert_eq!(key(bits(coefficient, exponent)), key(bits(longer, exponent - zeros as i32)));
    }

    #[test]
    fn whole_doubles_are_their_integers(n in -(1_i64 << 53)..=1 << 53) {
        prop_assert_eq!(key(n), key(n as f64));
    }

    #[test]
    fn hostile_bytes_never_panic(kind in any::<u8>(), bytes in proptest::collection::vec(prop_oneof![0..20_u8, any::<u8>()], 0..60)) {
        let mut out = vec![1];
        if canonical_key(kind, &bytes, &mut out).is_err() {
            prop_assert_eq!(out, [1]);
        }
        let _ = raw_id(&bytes);
    }
}
