//! The rules one by one, then random documents and diffs against a model that works on decoded documents.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod model;

use bson::{Bson, Document, RawDocument, RawDocumentBuf, doc};
use proptest::collection::vec;
use proptest::prelude::*;

use super::{UpdateError, apply, compose};

pub(super) fn raw(doc: &Document) -> RawDocumentBuf {
    RawDocumentBuf::try_from(doc).unwrap()
}

fn try_apply(base: &Document, o: &Document) -> Result<Document, UpdateError> {
    let mut out = b"before".to_vec();
    let done = apply(&raw(base), &raw(o), &mut out);
    if let Err(error) = done {
        assert_eq!(out, b"before");
        return Err(error);
    }
    Ok(Document::from_reader(&out[6..]).unwrap())
}

#[track_caller]
fn check(base: Document, o: Document, want: Document) {
    let got = try_apply(&base, &o).unwrap();
    // Documents compare as maps; their text keeps the order.
    assert_eq!(got.to_string(), want.to_string());
}

fn v2(diff: Document) -> Document {
    doc! { "$v": 2, "diff": diff }
}

#[test]
fn replacements_put_the_id_first() {
    check(doc! { "_id": 1, "a": 1 }, doc! { "_id": 1, "b": 2 }, doc! { "_id": 1, "b": 2 });
    check(doc! { "_id": 1, "a": 1 }, doc! { "b": 2, "_id": 1.0, "c": 3 }, doc! { "_id": 1.0, "b": 2, "c": 3 });
    check(doc! { "_id": 1, "a": 1 }, doc! { "b": 2 }, doc! { "_id": 1, "b": 2 });
    check(doc! { "_id": 1, "a": 1 }, doc! {}, doc! { "_id": 1 });
    // With an _id, even $v is a field of the user's.
    check(doc! { "_id": 1 }, doc! { "_id": 1, "$v": 2, "diff": {} }, doc! { "_id": 1, "$v": 2, "diff": {} });
}

#[test]
fn unknown_forms_are_refused() {
    for o in [
        doc! { "$v": 3, "diff": { "u": { "a": 1 } } },
        doc! { "$v": "2", "diff": { "u": { "a": 1 } } },
        doc! { "$v": 2 },
        doc! { "$v": 2, "diff": 1 },
        doc! { "$v": 2, "diff": { "u": {} }, "more": 1 },
        doc! { "$v": 1, "$inc": { "a": 1 } },
        doc! { "$v": 1, "$set": 1 },
    ] {
        let error = try_apply(&doc! { "_id": 1 }, &o).unwrap_err();
        assert!(matches!(error, UpdateError::UnknownForm(_)), "{o}: {error}");
    }
}

#[test]
fn document_sections() {
    let base = doc! { "_id": 1, "a": 1, "b": 2, "c": { "x": 1 }, "d": [1] };
    // In place, appended in order, moved to the end, removed.
    check(
        base.clone(),
        v2(doc! { "d": { "d": false, "none": false }, "u": { "z": 9, "a": 7 }, "i": { "y": 8, "b": 3 } }),
        doc! { "_id": 1, "a": 7, "c": { "x": 1 }, "z": 9, "y": 8, "b": 3 },
    );
    // Subdiffs: applied, of a missing field, of the wrong type.
    check(
        base.clone(),
        v2(
            doc! { "sa": { "u": { "x": 2 } }, "sc": { "u": { "x": 2 } }, "sd": { "u": { "x": 2 } }, "snone": { "u": { "x": 2 } } },
        ),
        doc! { "_id": 1, "a": null, "b": 2, "c": { "x": 2 }, "d": null },
    );
    check(
        base,
        v2(doc! { "sc": { "a": true, "u0": 1 }, "sd": { "a": true, "u0": { "q": 1 } } }),
        doc! { "_id": 1, "a": 1, "b": 2, "c": null, "d": [{ "q": 1 }] },
    );
}

/// As written by an update that replaces a document by its own fields in another order.
#[test]
fn the_id_stays_first() {
    let base = || doc! { "_id": 1, "a": 1, "b": 2 };
    check(base(), v2(doc! { "i": { "_id": 1, "a": 1 } }), doc! { "_id": 1, "b": 2, "a": 1 });
    check(base(), v2(doc! { "i": { "a": 3, "_id": 1 } }), doc! { "_id": 1, "b": 2, "a": 3 });
    check(doc! { "a": 1, "_id": 1 }, doc! { "$v": 1, "$set": { "a": 2 } }, doc! { "_id": 1, "a": 2 });
    check(base(), v2(doc! { "d": { "_id": false } }), doc! { "a": 1, "b": 2 });
    // Further down it is a field like any other.
    check(
        doc! { "s": { "a": 1, "_id": 1 } },
        v2(doc! { "ss": { "u": { "a": 2 } } }),
        doc! { "s": { "a": 2, "_id": 1 } },
    );
}

#[test]
fn many_changes_are_found_by_name() {
    let base: Document = (0..40).map(|n| (format!("f{n}"), Bson::Int32(n))).collect();
    let new: Document = (20..60).map(|n| (format!("f{n}"), Bson::Int32(-n))).collect();
    let want: Document = (0..60).map(|n| (format!("f{n}"), Bson::Int32(if n < 20 { n } else { -n }))).collect();
    check(base.clone(), v2(doc! { "u": new.clone() }), want);
    let twice = v2(doc! { "d": { "f20": false }, "u": new });
    assert!(matches!(try_apply(&base, &twice), Err(UpdateError::InvalidDiff(_))));
}

#[test]
fn array_changes() {
    let base = doc! { "a": [1, { "x": 1 }, [5]] };
    let cases = [
        (
            doc! { "a": true, "u0": 9, "s1": { "u": { "x": 2 } }, "s2": { "a": true, "u1": 6 } },
            doc! { "a": [9, { "x": 2 }, [5, 6]] },
        ),
        (doc! { "a": true, "l": 1 }, doc! { "a": [1] }),
        (doc! { "a": true, "l": 0 }, doc! { "a": [] }),
        (doc! { "a": true, "l": 5 }, doc! { "a": [1, { "x": 1 }, [5], null, null] }),
        (doc! { "a": true, "l": 2, "u1": 8 }, doc! { "a": [1, 8] }),
        (doc! { "a": true, "u5": 6 }, doc! { "a": [1, { "x": 1 }, [5], null, null, 6] }),
        (doc! { "a": true, "s4": { "u": { "x": 1 } } }, doc! { "a": [1, { "x": 1 }, [5], null, null] }),
        (doc! { "a": true, "s0": { "u": { "x": 1 } }, "s1": { "a": true, "u0": 1 } }, doc! { "a": [null, null, [5]] }),
        (doc! { "a": true }, base.clone()),
    ];
    for (diff, want) in cases {
        check(base.clone(), v2(doc! { "sa": diff }), want);
    }
}

#[test]
fn index_names_count_on() {
    let base = doc! { "a": (0..1001).map(Bson::Int32).collect::<Vec<_>>() };
    let mut want: Vec<_> = (0..1001).map(Bson::Int32).collect();
    want[999] = Bson::Null;
    want.extend([Bson::Null, Bson::Boolean(true)]);
    let diff = v2(doc! { "sa": { "a": true, "s999": { "u": { "x": 1 } }, "u1002": true } });
    let got = try_apply(&base, &diff).unwrap();
    assert_eq!(raw(&got), raw(&doc! { "a": want }));
}

#[test]
fn binary_section() {
    let bin = |subtype: u8, bytes: &[u8]| Bson::Binary(bson::Binary { subtype: subtype.into(), bytes: bytes.to_vec() });
    let base = doc! { "data": { "t": bin(7, b"abcdef"), "n": 1 } };
    let change = |offset: i32| {
        let change = doc! { "o": offset, "d": bin(0, b"XYZ") };
        v2(doc! { "sdata": { "b": { "t": change.clone(), "n": change.clone(), "none": change } } })
    };
    let want = |bytes: &[u8]| doc! { "data": { "t": bin(7, bytes), "n": 1 } };
    check(base.clone(), change(2), want(b"abXYZ"));
    check(base.clone(), change(6), want(b"abcdefXYZ"));
    check(base.clone(), change(7), want(b"abcdef"));
    for wrong in [doc! { "o": -1, "d": bin(0, b"") }, doc! { "d": bin(0, b"") }, doc! { "o": 1, "d": "x" }] {
        let error = try_apply(&base, &v2(doc! { "b": { "x": wrong } })).unwrap_err();
        assert!(matches!(error, UpdateError::InvalidDiff(_)), "{error}");
    }
}

#[test]
fn invalid_diffs_are_refused() {
    for diff in [
        doc! {},
        doc! { "x": {} },
        doc! { "i": { "a": 1 }, "u": { "b": 1 } },
        doc! { "u": 1 },
        doc! { "sa": { "u": { "a": 1 } }, "u": { "b": 1 } },
        doc! { "u": { "q": 1 }, "sq": { "u": { "a": 1 } } },
        doc! { "sa": {} },
        doc! { "sa": 1 },
        doc! { "sa": { "a": false } },
        doc! { "sa": { "a": true, "l": -1 } },
        doc! { "sa": { "a": true, "l": 1.0 } },
        doc! { "sa": { "a": true, "l": 1, "u1": 1 } },
        doc! { "sa": { "a": true, "u1": 1, "u1": 2, "u0": 3 } },
        doc! { "sa": { "a": true, "ux": 1 } },
        doc! { "sa": { "a": true, "u": 1 } },
        doc! { "sa": { "a": true, "s1": 1 } },
    ] {
        let error = try_apply(&doc! { "a": [] }, &v2(diff.clone())).unwrap_err();
        assert!(matches!(error, UpdateError::InvalidDiff(_)), "{diff}: {error}");
    }
    let huge = v2(doc! { "sa": { "a": true, "l": i32::MAX } });
    assert_eq!(try_apply(&doc! { "a": [] }, &huge), Err(UpdateError::TooLarge));
}

/// Builds from the inside: the depth is more than recursive builders would bear.
fn nest(key: &[u8], kind: u8, levels: usize, innermost: &[u8]) -> Vec<u8> {
    let mut inner = innermost.to_vec();
    for _ in 0..levels {
        let mut next = Vec::new();
        let at = super::raw::open(&mut next);
        super::raw::push_element(&mut next, kind, key, &inner);
        super::raw::close(&mut next, at).unwrap();
        inner = next;
    }
    inner
}

#[test]
fn too_deep_is_an_error() {
    let base = nest(b"a", 3, 5000, &[5, 0, 0, 0, 0]);
    let end = raw(&doc! { "u": { "a": 1 } });
    let diff = nest(b"sa", 3, 4900, end.as_bytes());
    let base = RawDocument::from_bytes(&base).unwrap();
    let mut o = nest(b"diff", 3, 1, &diff);
    o.splice(4..4, *b"\x10$v\0\x02\0\0\0");
    let len = (o.len() as i32).to_le_bytes();
    o[..4].copy_from_slice(&len);
    let o = RawDocument::from_bytes(&o).unwrap();
    assert_eq!(apply(base, o, &mut Vec::new()), Err(UpdateError::TooDeep));
    let dotted = doc! { "$v": 1, "$set": { vec!["a"; 5000].join("."): 1 } };
    assert_eq!(apply(base, &raw(&dotted), &mut Vec::new()), Err(UpdateError::TooDeep));
    assert_eq!(try_apply(&doc! {}, &dotted), Err(UpdateError::TooDeep));
}

#[test]
fn modifiers_on_documents() {
    let base = || doc! { "_id": 1, "a": { "b": 1 }, "s": 5, "n": null };
    check(
        base(),
        doc! { "$v": 1, "$set": { "s": 6, "z": 1, "y.x": 2 } },
        doc! { "_id": 1, "a": { "b": 1 }, "s": 6, "n": null, "y": { "x": 2 }, "z": 1 },
    );
    check(
        base(),
        doc! { "$set": { "a.c": 1, "a.b": 2, "a!": 3 } },
        doc! { "_id": 1, "a": { "b": 2, "c": 1 }, "s": 5, "n": null, "a!": 3 },
    );
    // Through a scalar or null: passed over.
    check(
        base(),
        doc! { "$v": 1, "$set": { "s.x": 1, "n.x.y": 1, "q": 1 } },
        doc! { "_id": 1, "a": { "b": 1 }, "s": 5, "n": null, "q": 1 },
    );
    check(
        base(),
        doc! { "$v": 1, "$unset": { "a.b": true, "s.x": true, "none.x": true, "n": true } },
        doc! { "_id": 1, "a": {}, "s": 5 },
    );
    // Missing parents are documents, whatever the component looks like.
    check(
        doc! {},
        doc! { "$set": { "a.10.x": 1, "a.9.x": 2 }, "$unset": { "a.8.y": 1 } },
        doc! { "a": { "10": { "x": 1 }, "9": { "x": 2 } } },
    );
}

#[test]
fn modifiers_on_arrays() {
    let base = || doc! { "a": [1, { "x": 1 }] };
    check(base(), doc! { "$set": { "a.0": 5, "a.1.x": 2 } }, doc! { "a": [5, { "x": 2 }] });
    check(base(), doc! { "$unset": { "a.0": true, "a.1.x": true, "a.7": true } }, doc! { "a": [null, {}] });
    check(base(), doc! { "$set": { "a.3": 5 } }, doc! { "a": [1, { "x": 1 }, null, 5] });
    check(base(), doc! { "$set": { "a.3.y": 5, "a.3.z": 6 } }, doc! { "a": [1, { "x": 1 }, null, { "y": 5, "z": 6 }] });
    check(base(), doc! { "$set": { "a.name": 5, "a.0.x": 1 } }, base());
    // "10" comes before "3" and pads: a value replaces the padding, a path does not lead through it.
    let padded = |three: Bson| {
        let mut values = vec![Bson::Int32(1), doc! { "x": 1 }.into()];
        values.resize(10, Bson::Null);
        values[3] = three;
        values.push(Bson::Int32(7));
        doc! { "a": values }
    };
    check(base(), doc! { "$set": { "a.3": 6, "a.10": 7 } }, padded(6.into()));
    check(base(), doc! { "$set": { "a.3.x": 6, "a.10": 7 } }, padded(Bson::Null));
}

#[test]
fn invalid_modifiers_are_refused() {
    for o in [
        doc! { "$set": { "a": 1, "a.b": 2 } },
        doc! { "$set": { "a": 1 }, "$unset": { "a": 1 } },
        doc! { "$set": { "a..b": 1 } },
        doc! { "$set": { "": 1 } },
        doc! { "$set": { "a.$": 1 } },
        doc! { "$set": { "a.$[].b": 1 } },
        doc! { "$set": { "a.0": 1, "a.00": 1 } },
    ] {
        let error = try_apply(&doc! { "a": [1] }, &o).unwrap_err();
        assert!(matches!(error, UpdateError::InvalidModifiers(_)), "{o}: {error}");
    }
    let far = doc! { "$set": { "a.2000000": 1 } };
    assert_eq!(try_apply(&doc! { "a": [] }, &far), Err(UpdateError::TooLarge));
}

#[test]
fn composing() {
    let compose = |older: &Document, newer: &Document| {
        let mut out = b"before".to_vec();
        let done = compose(raw(older).as_bytes(), raw(newer).as_bytes(), &mut out);
        if !done {
            assert_eq!(out, b"before");
        }
        done.then(|| Document::from_reader(&out[6..]).unwrap())
    };
    for (older, newer, both) in [
        (doc! { "u": { "a": 1, "b": 2 } }, doc! { "u": { "c": 3, "a": 4 } }, doc! { "u": { "a": 4, "b": 2, "c": 3 } }),
        // What is appended is appended in the same order.
        (doc! { "i": { "a": 1 } }, doc! { "u": { "a": 2 }, "i": { "b": 3 } }, doc! { "i": { "a": 2, "b": 3 } }),
        (doc! { "u": { "a": 1 } }, doc! { "d": { "a": false } }, doc! { "d": { "a": false } }),
        (doc! { "d": { "a": false } }, doc! { "i": { "a": 1 } }, doc! { "i": { "a": 1 } }),
        (doc! { "d": { "a": false } }, doc! { "u": { "a": 1 } }, doc! { "i": { "a": 1 } }),
        // Deltas within deltas.
        (
            doc! { "u": { "v": 1 }, "sa": { "a": true, "s0": { "u": { "n": 1 } } } },
            doc! { "u": { "v": 2 }, "sa": { "a": true, "s0": { "u": { "n": 2 } }, "u1": 7 } },
            doc! { "u": { "v": 2 }, "sa": { "a": true, "s0": { "u": { "n": 2 } }, "u1": 7 } },
        ),
        (
            doc! { "u": { "a": { "x": 1 } }, "i": { "b": [1] } },
            doc! { "sa": { "u": { "x": 2 } }, "sb": { "a": true, "u1": 2 } },
            doc! { "u": { "a": { "x": 2 } }, "i": { "b": [1, 2] } },
        ),
        (
            doc! { "d": { "x": false }, "u": { "v": 1 }, "i": { "w": 1 }, "sa": { "a": true, "s0": { "u": { "n": 1 } } } },
            doc! { "d": { "x": false }, "u": { "v": 2 }, "i": { "w": 2 }, "sa": { "a": true, "s0": { "u": { "n": 2 } } } },
            doc! { "d": { "x": false }, "u": { "v": 2 }, "i": { "w": 2 }, "sa": { "a": true, "s0": { "u": { "n": 2 } } } },
        ),
        // The last element is taken away, and two others are appended.
        (
            doc! { "sa": { "a": true, "l": 2, "u0": 5, "u1": 6 } },
            doc! { "sa": { "a": true, "u1": 7, "u2": 8, "u3": 9 } },
            doc! { "sa": { "a": true, "l": 4, "u0": 5, "u1": 7, "u2": 8, "u3": 9 } },
        ),
        (
            doc! { "sa": { "a": true, "u1": 6, "u9": 1 } },
            doc! { "sa": { "a": true, "l": 5 } },
            doc! { "sa": { "a": true, "l": 5, "u1": 6 } },
        ),
    ] {
        let got = compose(&v2(older.clone()), &v2(newer.clone()));
        assert_eq!(got.map(|got| got.to_string()), Some(v2(both).to_string()), "{older} and {newer}");
    }
    let older = v2(doc! { "u": { "a": 1 }, "i": { "b": 2 }, "sc": { "u": { "x": 1 } }, "se": { "a": true, "l": 2 } });
    for other in [
        doc! { "_id": 1, "a": 1 },
        doc! { "$v": 1, "$set": { "a": 1 } },
        v2(doc! {}),
        // Whether the base has it decides where it is appended.
        v2(doc! { "u": { "z": 1 } }),
        v2(doc! { "u": { "c": 1 } }),
        v2(doc! { "sc": { "a": true, "u0": 1 } }),
        v2(doc! { "se": { "a": true, "u3": 1 } }),
        v2(doc! { "se": { "a": true, "l": 3 } }),
        v2(doc! { "se": { "a": true, "s2": { "u": { "x": 1 } } } }),
    ] {
        assert_eq!(compose(&older, &other), None, "{other}");
    }
    let many: Document = (0..100).map(|n| (n.to_string(), Bson::Int32(n))).collect();
    let backwards: Document = (0..100).rev().map(|n| (n.to_string(), Bson::Int32(n))).collect();
    let many = v2(doc! { "u": many });
    assert_eq!(compose(&many, &many), Some(many.clone()));
    assert_eq!(compose(&many, &v2(doc! { "u": backwards })), None, "that would take too many comparisons");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn agrees_with_the_model(base in model::document(), diff in model::diff()) {
        let want = model::apply(&base, &diff);
        match try_apply(&base, &v2(diff)) {
            Ok(got) => prop_assert_eq!(Some(raw(&got)), want.map(|want| raw(&model::id_first(want)))),
            Err(UpdateError::InvalidDiff(_)) => prop_assert_eq!(want, None),
            Err(error) => prop_assert!(false, "{}", error),
        }
    }

    #[test]
    fn composed_is_both(base in model::document(), diffs in vec(model::diff(), 2..6)) {
        let mut step = raw(&base).as_bytes().to_vec();
        let mut run: Vec<RawDocumentBuf> = Vec::new();
        for diff in diffs {
            let newer = raw(&v2(diff));
            let mut next = Vec::new();
            if apply(RawDocument::from_bytes(&step).unwrap(), &newer, &mut next).is_err() {
                break;
            }
            step = next;
            let mut both = Vec::new();
            match run.last_mut() {
                Some(older) if compose(older.as_bytes(), newer.as_bytes(), &mut both) => {
                    *older = RawDocumentBuf::from_bytes(both).unwrap();
                }
                _ => run.push(newer),
            }
        }
        let mut once = raw(&base).as_bytes().to_vec();
        for update in run {
            let mut next = Vec::new();
            apply(RawDocument::from_bytes(&once).unwrap(), &update, &mut next).unwrap();
            once = next;
        }
        prop_assert_eq!(once, step);
    }

    #[test]
    fn any_two_sets_of_fields_are_one(older in model::fields(), newer in model::fields()) {
        prop_assume!(!older.is_empty() || !newer.is_empty());
        let (older, newer) = (raw(&v2(doc! { "u": older })), raw(&v2(doc! { "u": newer })));
        prop_assert!(compose(older.as_bytes(), newer.as_bytes(), &mut Vec::new()));
    }

    #[test]
    fn hostile_bytes_never_panic(
        base in model::document(),
        diff in model::diff(),
        set in model::dotted(),
        flips in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        for o in [v2(diff), doc! { "$v": 1, "$set": set }] {
            let (base, o) = (raw(&base), raw(&o));
            for flip_base in [false, true] {
                let (mut base, mut o) = (base.as_bytes().to_vec(), o.as_bytes().to_vec());
                let target = if flip_base { &mut base } else { &mut o };
                for (at, byte) in &flips {
                    // The frame is what RawDocument checks; the rest is ours.
                    let at = 4 + at.index(target.len() - 4);
                    if at + 1 < target.len() {
                        target[at] = *byte;
                    }
                }
                let mut out = Vec::new();
                let (base, o) = (RawDocument::from_bytes(&base).unwrap(), RawDocument::from_bytes(&o).unwrap());
                if apply(base, o, &mut out).is_ok() {
                    prop_assert!(RawDocument::from_bytes(&out).is_ok());
                }
                compose(o.as_bytes(), o.as_bytes(), &mut out);
            }
        }
    }
}
