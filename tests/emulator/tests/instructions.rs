//! Instructions on whole numbers and bits, against arithmetic in wider types.

use crate::device::compute::{assert_computes, compute};
use crate::device::{Numbers, run_body};

/// Many values of `bits` bits, corner cases first; different for each `seed`.
fn values(bits: u32, seed: u64) -> Vec<u64> {
    let mask = u64::MAX >> (64 - bits);
    let mut corners = vec![0, 1, 2, 3, 7, 31, 32, 33, mask, mask - 1, mask / 2, mask / 2 + 1, 0x80, 0xff];
    let mut numbers = Numbers::new(seed);
    let shift = seed as usize % corners.len();
    corners.rotate_left(shift);
    let random = (0..486).map(|_| {
        let word = u64::from(numbers.word()) << 32 | u64::from(numbers.word());
        word >> (numbers.word() % bits)
    });
    corners.into_iter().chain(random).map(|value| value & mask).collect()
}

fn signed(value: u64, bits: u32) -> i128 {
    i128::from((value << (64 - bits)) as i64 >> (64 - bits))
}

#[test]
fn sums_products_and_extremes() {
    for bits in [16, 32, 64] {
        let mask = u64::MAX >> (64 - bits);
        let (a, b, c) = (values(bits, 1), values(bits, 2), values(bits, 3));
        for sign in ["u", "s"] {
            let whole = |value: u64| if sign == "s" { signed(value, bits) } else { i128::from(value) };
            let check = |name: &str, expected: &dyn Fn(i128, i128) -> i128| {
                let instruction = format!("{name}.{sign}{bits} O, A, B;");
                assert_computes(&instruction, bits, &[(bits, &a), (bits, &b)], |v| {
                    expected(whole(v[0]), whole(v[1])) as u64 & mask
                });
            };
            check("add", &|a, b| a.wrapping_add(b));
            check("sub", &|a, b| a.wrapping_sub(b));
            check("mul.lo", &|a, b| a.wrapping_mul(b));
            check("mul.hi", &|a, b| ((a as u128).wrapping_mul(b as u128) as i128) >> bits);
            check("min", &|a, b| a.min(b));
            check("max", &|a, b| a.max(b));
            check("div", &|a, b| if b == 0 { -1 } else { a / b });
            check("rem", &|a, b| if b == 0 { a } else { a % b });
            let three = [(bits, &a[..]), (bits, &b[..]), (bits, &c[..])];
            assert_computes(&format!("mad.lo.{sign}{bits} O, A, B, C;"), bits, &three, |v| {
                whole(v[0]).wrapping_mul(whole(v[1])).wrapping_add(whole(v[2])) as u64 & mask
            });
            if bits < 64 {
                let wide = u64::MAX >> (64 - 2 * bits);
                assert_computes(
                    &format!("mul.wide.{sign}{bits} O, A, B;"),
                    2 * bits,
                    &[(bits, &a), (bits, &b)],
                    |v| (whole(v[0]) * whole(v[1])) as u64 & wide,
                );
                let d = values(2 * bits, 4);
                let operands = [(bits, &a[..]), (bits, &b[..]), (2 * bits, &d[..])];
                assert_computes(&format!("mad.wide.{sign}{bits} O, A, B, C;"), 2 * bits, &operands, |v| {
                    (whole(v[0]) * whole(v[1])).wrapping_add(i128::from(v[2])) as u64 & wide
                });
            }
        }
        assert_computes(&format!("abs.s{bits} O, A;"), bits, &[(bits, &a)], |v| {
            signed(v[0], bits).unsigned_abs() as u64 & mask
        });
        assert_computes(&format!("neg.s{bits} O, A;"), bits, &[(bits, &a)], |v| {
            -signed(v[0], bits) as u64 & mask
        });
    }
}

#[test]
fn dot_products_of_bytes() {
    let (a, b, c) = (values(32, 5), values(32, 6), values(32, 7));
    for (first, second) in [("u32", "u32"), ("s32", "s32"), ("u32", "s32"), ("s32", "u32")] {
        let byte = |word: u64, at: u32, kind: &str| {
            let byte = word >> (8 * at) & 255;
            if kind == "s32" { signed(byte, 8) } else { i128::from(byte) }
        };
        let operands = [(32, &a[..]), (32, &b[..]), (32, &c[..])];
        assert_computes(&format!("dp4a.{first}.{second} O, A, B, C;"), 32, &operands, |v| {
            let sum: i128 = (0..4).map(|at| byte(v[0], at, first) * byte(v[1], at, second)).sum();
            (sum + i128::from(v[2])) as u64 & 0xffff_ffff
        });
    }
}

#[test]
fn logic_and_shifts() {
    for bits in [16, 32, 64] {
        let mask = u64::MAX >> (64 - bits);
        let (a, b) = (values(bits, 1), values(bits, 2));
        let two = [(bits, &a[..]), (bits, &b[..])];
        assert_computes(&format!("and.b{bits} O, A, B;"), bits, &two, |v| v[0] & v[1]);
        assert_computes(&format!("or.b{bits} O, A, B;"), bits, &two, |v| v[0] | v[1]);
        assert_computes(&format!("xor.b{bits} O, A, B;"), bits, &two, |v| v[0] ^ v[1]);
        assert_computes(&format!("not.b{bits} O, A;"), bits, &two[..1], |v| !v[0] & mask);
        let amounts: Vec<u64> = (0..a.len() as u64).map(|at| at % 70).collect();
        let shift = [(bits, &a[..]), (32, &amounts[..])];
        let amount = |v: &[u64]| v[1].min(u64::from(bits)) as u32;
        assert_computes(&format!("shl.b{bits} O, A, B;"), bits, &shift, |v| {
            (u128::from(v[0]) << amount(v)) as u64 & mask
        });
        assert_computes(&format!("shr.u{bits} O, A, B;"), bits, &shift, |v| {
            (u128::from(v[0]) >> amount(v)) as u64
        });
        assert_computes(&format!("shr.s{bits} O, A, B;"), bits, &shift, |v| {
            (signed(v[0], bits) >> amount(v)) as u64 & mask
        });
    }
    let predicates = [vec![0, 0, 1, 1], vec![0, 1, 0, 1]];
    let two = [(1, &predicates[0][..]), (1, &predicates[1][..])];
    assert_eq!(compute("and.pred O, A, B;", 1, &two), [0, 0, 0, 1]);
    assert_eq!(compute("or.pred O, A, B;", 1, &two), [0, 1, 1, 1]);
    assert_eq!(compute("xor.pred O, A, B;", 1, &two), [0, 1, 1, 0]);
    assert_eq!(compute("not.pred O, A;", 1, &two), [1, 1, 0, 0]);
}

#[test]
fn funnels_and_tables() {
    let (a, b, c) = (values(32, 1), values(32, 2), values(32, 3));
    let three = [(32, &a[..]), (32, &b[..]), (32, &c[..])];
    let both = |v: &[u64]| u128::from(v[1] << 32 | v[0]);
    assert_computes("shf.l.wrap.b32 O, A, B, C;", 32, &three, |v| {
        (both(v) << (v[2] % 32) >> 32) as u64 & 0xffff_ffff
    });
    assert_computes("shf.l.clamp.b32 O, A, B, C;", 32, &three, |v| {
        (both(v) << v[2].min(32) >> 32) as u64 & 0xffff_ffff
    });
    assert_computes("shf.r.wrap.b32 O, A, B, C;", 32, &three, |v| {
        (both(v) >> (v[2] % 32)) as u64 & 0xffff_ffff
    });
    assert_computes("shf.r.clamp.b32 O, A, B, C;", 32, &three, |v| {
        (both(v) >> v[2].min(32)) as u64 & 0xffff_ffff
    });
    for table in [0x00u64, 0x80, 0xea, 0x96, 0xca, 0x1b, 0xff] {
        // Bit i of the result is bit 4a + 2b + c of the table.
        assert_computes(&format!("lop3.b32 O, A, B, C, {table};"), 32, &three, |v| {
            (0..32)
                .map(|bit| {
                    let at = (v[0] >> bit & 1) << 2 | (v[1] >> bit & 1) << 1 | v[2] >> bit & 1;
                    (table >> at & 1) << bit
                })
                .sum()
        });
    }
    assert_computes("prmt.b32 O, A, B, C;", 32, &three, |v| {
        (0..4)
            .map(|at| {
                let selector = v[2] >> (4 * at) & 15;
                let byte = (v[1] << 32 | v[0]) >> (8 * (selector & 7)) & 255;
                let byte = if selector & 8 == 0 { byte } else { (byte >> 7) * 255 };
                byte << (8 * at)
            })
            .sum()
    });
}

#[test]
fn fields_and_counts() {
    for bits in [32, 64] {
        let mask = u64::MAX >> (64 - bits);
        let (a, b) = (values(bits, 1), values(bits, 2));
        let places: Vec<u64> = (0..a.len() as u64).map(|at| at % 67).collect();
        for length in [0u32, 1, 5, 31, 32, 40] {
            let operands = [(bits, &a[..]), (32, &places[..])];
            // Beyond the word a signed field goes on with the word's sign, an unsigned one with zeros.
            assert_computes(&format!("bfe.u{bits} O, A, B, {length};"), bits, &operands, |v| {
                (u128::from(v[0]) >> v[1] & ((1 << length) - 1)) as u64
            });
            assert_computes(&format!("bfe.s{bits} O, A, B, {length};"), bits, &operands, |v| {
                if length == 0 {
                    return 0;
                }
                let field = signed(v[0], bits) >> v[1];
                let excess = 128 - length;
                (field << excess >> excess) as u64 & mask
            });
            let operands = [(bits, &a[..]), (bits, &b[..]), (32, &places[..])];
            assert_computes(&format!("bfi.b{bits} O, A, B, C, {length};"), bits, &operands, |v| {
                let field = (((1u128 << length) - 1) << v[2]) as u64 & mask;
                (v[1] & !field) | ((u128::from(v[0]) << v[2]) as u64 & field)
            });
        }
        assert_computes(&format!("popc.b{bits} O, A;"), 32, &[(bits, &a)], |v| v[0].count_ones().into());
        assert_computes(&format!("clz.b{bits} O, A;"), 32, &[(bits, &a)], |v| {
            u64::from(v[0].leading_zeros()) - u64::from(64 - bits)
        });
        assert_computes(&format!("brev.b{bits} O, A;"), bits, &[(bits, &a)], |v| {
            v[0].reverse_bits() >> (64 - bits)
        });
    }
}

#[test]
fn comparisons_and_choices() {
    for bits in [16, 32, 64] {
        let (a, mut b) = (values(bits, 1), values(bits, 2));
        b[100..200].copy_from_slice(&a[100..200]);
        let two = [(bits, &a[..]), (bits, &b[..])];
        for sign in ["u", "s"] {
            let whole = |value: u64| if sign == "s" { signed(value, bits) } else { i128::from(value) };
            let check = |name: &str, holds: &dyn Fn(i128, i128) -> bool| {
                assert_computes(&format!("setp.{name}.{sign}{bits} O, A, B;"), 1, &two, |v| {
                    holds(whole(v[0]), whole(v[1])).into()
                });
            };
            check("eq", &|a, b| a == b);
            check("ne", &|a, b| a != b);
            check("lt", &|a, b| a < b);
            check("le", &|a, b| a <= b);
            check("gt", &|a, b| a > b);
            check("ge", &|a, b| a >= b);
        }
        let flags: Vec<u64> = (0..a.len() as u64).map(|at| at % 2).collect();
        let three = [(bits, &a[..]), (bits, &b[..]), (1, &flags[..])];
        assert_computes(&format!("selp.b{bits} O, A, B, C;"), bits, &three, |v| {
            if v[2] == 1 { v[0] } else { v[1] }
        });
        assert_computes(&format!("setp.lt.and.u{bits} O, A, B, C;"), 1, &three, |v| {
            (v[0] < v[1] && v[2] == 1).into()
        });
        assert_computes(&format!("setp.lt.or.u{bits} O, A, B, !C;"), 1, &three, |v| {
            (v[0] < v[1] || v[2] == 0).into()
        });
    }
}

#[test]
fn words_are_packed_and_unpacked() {
    let body = "ld.global.v2.b32 {%r1, %r2}, [%d0];\nmov.b64 %d1, {%r1, %r2};\nmov.b64 {%r3, _}, %d1;\n\
                mov.b64 {%h1, %h2, %h3, %h4}, %d1;\nmov.b32 %r4, {%h4, %h1};\nshr.u64 %d2, %d1, 32;\n\
                cvt.u32.u64 %r5, %d2;\nst.global.v2.b32 [%d0], {%r3, %r5};\nst.global.b32 [%d0+8], %r4;";
    let words = run_body(body, 1, &[0x1122_3344, 0x5566_7788, 0]).unwrap();
    assert_eq!(words, [0x1122_3344, 0x5566_7788, 0x3344_5566]);
}

#[test]
fn integers_change_their_width() {
    let types = ["u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64"];
    for (from, bits) in types.into_iter().zip([8, 8, 16, 16, 32, 32, 64, 64]) {
        let held = bits.max(16);
        let a = values(held, 1);
        let value = |word: u64| {
            if from.starts_with('s') {
                signed(word, bits)
            } else {
                i128::from(word & (u64::MAX >> (64 - bits)))
            }
        };
        for (into, width) in types.into_iter().zip([8, 8, 16, 16, 32, 32, 64, 64]).skip(2) {
            let mask = u64::MAX >> (64 - width);
            assert_computes(&format!("cvt.{into}.{from} O, A;"), width, &[(held, &a)], |v| {
                value(v[0]) as u64 & mask
            });
            let (least, most) = if into.starts_with('s') {
                (-(1i128 << (width - 1)), (1 << (width - 1)) - 1)
            } else {
                (0, (1i128 << width) - 1)
            };
            assert_computes(&format!("cvt.sat.{into}.{from} O, A;"), width, &[(held, &a)], |v| {
                value(v[0]).clamp(least, most) as u64 & mask
            });
        }
        assert_computes(&format!("cvt.sat.s8.{from} O, A;"), 32, &[(held, &a)], |v| {
            value(v[0]).clamp(-128, 127) as u64 & 0xffff_ffff
        });
        assert_computes(&format!("cvt.u8.{from} O, A;"), 16, &[(held, &a)], |v| value(v[0]) as u64 & 255);
    }
}
