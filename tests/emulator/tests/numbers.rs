//! Floating-point numbers, against arithmetic in double precision and tables of every short number.

use crate::device::Numbers;
use crate::device::compute::{assert_computes, compute};

/// The value of a number with `exponent_bits` and `mantissa_bits`, by its definition.
fn value_of(bits: u64, exponent_bits: u32, mantissa_bits: u32) -> f64 {
    let sign = if bits >> (exponent_bits + mantissa_bits) & 1 == 1 { -1.0 } else { 1.0 };
    let exponent = (bits >> mantissa_bits) as i32 & ((1 << exponent_bits) - 1);
    let mantissa = (bits & ((1 << mantissa_bits) - 1)) as f64 / f64::from(1u32 << mantissa_bits);
    let bias = (1 << (exponent_bits - 1)) - 1;
    if exponent == (1 << exponent_bits) - 1 {
        return if mantissa == 0.0 { sign * f64::INFINITY } else { f64::NAN };
    }
    if exponent == 0 {
        return sign * mantissa * 2f64.powi(1 - bias);
    }
    sign * (1.0 + mantissa) * 2f64.powi(exponent - bias)
}

fn half(bits: u64) -> f64 {
    value_of(bits, 5, 10)
}

fn brain(bits: u64) -> f64 {
    value_of(bits, 8, 7)
}

fn single(bits: u64) -> f64 {
    f64::from(f32::from_bits(bits as u32))
}

/// Positive numbers of a short format in rising order, the infinity last; their bits are their places.
fn rising(decode: fn(u64) -> f64, infinity: u64) -> Vec<f64> {
    (0..=infinity).map(decode).collect()
}

/// Bits of the number of a format that is nearest to `value`, the even one of two.
fn nearest(value: f64, table: &[f64]) -> u64 {
    let infinity = table.len() - 1;
    let sign = u64::from(value.is_sign_negative()) << 15;
    if value.is_nan() {
        return 0x7fff;
    }
    let magnitude = value.abs();
    let above = table.partition_point(|other| *other < magnitude);
    if above == 0 || above > infinity {
        return sign | above.min(infinity) as u64;
    }
    // The infinity counts as the next number that a larger exponent would give.
    let step = table[infinity - 1] - table[infinity - 2];
    let upper = if above == infinity { table[infinity - 1] + step } else { table[above] };
    let (to_lower, to_upper) = (magnitude - table[above - 1], upper - magnitude);
    let takes_upper = to_upper < to_lower || (to_upper == to_lower && above % 2 == 0);
    sign | if takes_upper { above } else { above - 1 } as u64
}

/// Singles all over the range, with ties between short numbers among them.
fn singles(seed: u64) -> Vec<u64> {
    let mut numbers = Numbers::new(seed);
    let mut values: Vec<u64> = [
        0.0f32,
        -0.0,
        1.0,
        -1.0,
        65504.0,
        65520.0,
        65519.99,
        1e-8,
        -6e-8,
        3e38,
        f32::INFINITY,
        f32::NEG_INFINITY,
    ]
    .iter()
    .map(|value| u64::from(value.to_bits()))
    .collect();
    for _ in 0..1000 {
        let exponent = numbers.word() % 45 + 100;
        let word = numbers.word() & 0x807f_ffff | exponent << 23;
        values.push(u64::from(word));
        values.push(u64::from(word & !0x1fff | 0x1000));
        values.push(u64::from(word & !0xffff | 0x8000));
    }
    values
}

#[test]
fn every_short_number_is_widened() {
    let all: Vec<u64> = (0..65536).collect();
    for (name, decode) in [("f16", half as fn(u64) -> f64), ("bf16", brain)] {
        let found = compute(&format!("cvt.f32.{name} O, A;"), 32, &[(16, &all)]);
        for (bits, found) in all.iter().zip(found) {
            let (found, expected) = (single(found), decode(*bits));
            assert!(
                found.is_nan() && expected.is_nan()
                    || found == expected && found.is_sign_negative() == expected.is_sign_negative(),
                "{name} {bits:#x}: {found}"
            );
        }
    }
}

#[test]
fn singles_are_rounded_to_the_nearest_short_number() {
    let values = singles(1);
    let halves = rising(half, 0x7c00);
    let brains = rising(brain, 0x7f80);
    assert_computes("cvt.rn.f16.f32 O, A;", 16, &[(32, &values)], |v| nearest(single(v[0]), &halves));
    assert_computes("cvt.rn.bf16.f32 O, A;", 16, &[(32, &values)], |v| nearest(single(v[0]), &brains));
    let mut others = values.clone();
    others.reverse();
    let two = [(32, &values[..]), (32, &others[..])];
    assert_computes("cvt.rn.f16x2.f32 O, A, B;", 32, &two, |v| {
        nearest(single(v[0]), &halves) << 16 | nearest(single(v[1]), &halves)
    });
    assert_computes("cvt.rn.bf16x2.f32 O, A, B;", 32, &two, |v| {
        nearest(single(v[0]), &brains) << 16 | nearest(single(v[1]), &brains)
    });
    // Towards zero: the bits are cut.
    assert_computes("cvt.rz.bf16.f32 O, A;", 16, &[(32, &values)], |v| v[0] >> 16);
    assert_computes("cvt.rna.tf32.f32 O, A;", 32, &[(32, &values)], |v| {
        if v[0] & 0x7f80_0000 == 0x7f80_0000 { v[0] } else { (v[0] + 0x1000) & !0x1fff }
    });
}

#[test]
fn short_sums_and_products_are_rounded_once() {
    let halves = rising(half, 0x7c00);
    let brains = rising(brain, 0x7f80);
    let mut numbers = Numbers::new(2);
    // Exponents near each other, so that double precision holds every sum exactly.
    let mut short = |low: u32, span: u32, mantissa: u32| -> Vec<u64> {
        (0..3000)
            .map(|_| {
                let word = numbers.word();
                u64::from(
                    word & 0x8000
                        | (low + word % span) << mantissa
                        | (numbers.word() & ((1 << mantissa) - 1)),
                )
            })
            .collect()
    };
    for (name, table, decode, low, mantissa) in
        [("f16", &halves, half as fn(u64) -> f64, 8, 10), ("bf16", &brains, brain, 120, 7)]
    {
        let (a, b, c) = (short(low, 12, mantissa), short(low, 12, mantissa), short(low, 12, mantissa));
        let three = [(16, &a[..]), (16, &b[..]), (16, &c[..])];
        let two = &three[..2];
        assert_computes(&format!("add.rn.{name} O, A, B;"), 16, two, |v| {
            nearest(decode(v[0]) + decode(v[1]), table)
        });
        assert_computes(&format!("sub.rn.{name} O, A, B;"), 16, two, |v| {
            nearest(decode(v[0]) - decode(v[1]), table)
        });
        assert_computes(&format!("mul.rn.{name} O, A, B;"), 16, two, |v| {
            nearest(decode(v[0]) * decode(v[1]), table)
        });
        assert_computes(&format!("fma.rn.{name} O, A, B, C;"), 16, &three, |v| {
            nearest(decode(v[0]) * decode(v[1]) + decode(v[2]), table)
        });
        let pack = |low: &[u64], high: &[u64]| {
            low.iter().zip(high).map(|(low, high)| high << 16 | low).collect::<Vec<_>>()
        };
        let pairs = [pack(&a, &b), pack(&b, &c), pack(&c, &a)];
        let operands = [(32, &pairs[0][..]), (32, &pairs[1][..]), (32, &pairs[2][..])];
        assert_computes(&format!("fma.rn.{name}x2 O, A, B, C;"), 32, &operands, |v| {
            let part = |at: u32| {
                nearest(
                    decode(v[0] >> at & 0xffff) * decode(v[1] >> at & 0xffff) + decode(v[2] >> at & 0xffff),
                    table,
                )
            };
            part(16) << 16 | part(0)
        });
        assert_computes(&format!("neg.{name}x2 O, A;"), 32, &operands[..1], |v| v[0] ^ 0x8000_8000);
        assert_computes(&format!("max.{name} O, A, B;"), 16, two, |v| {
            if decode(v[0]) > decode(v[1]) { v[0] } else { v[1] }
        });
        assert_computes(&format!("min.{name} O, A, B;"), 16, two, |v| {
            if decode(v[0]) < decode(v[1]) { v[0] } else { v[1] }
        });
        assert_computes(&format!("setp.gt.{name} O, A, B;"), 1, two, |v| {
            (decode(v[0]) > decode(v[1])).into()
        });
    }
}

#[test]
fn single_arithmetic_is_rounded_once() {
    let (a, b) = (singles(3), singles(4));
    let two = [(32, &a[..]), (32, &b[..])];
    // Double precision is wide enough that rounding twice changes nothing.
    let bits = |value: f64| u64::from((value as f32).to_bits());
    let same = |instruction: &str, operands: &[(u32, &[u64])], expected: &dyn Fn(f64, f64) -> f64| {
        for (at, found) in compute(instruction, 32, operands).into_iter().enumerate() {
            let (first, second) = (single(operands[0].1[at]), single(operands[operands.len() - 1].1[at]));
            let expected = bits(expected(first, second));
            let is_nan = single(found).is_nan() && single(expected).is_nan();
            assert!(
                found == expected || is_nan,
                "{instruction} of {first}, {second}: {found:#x}, not {expected:#x}"
            );
        }
    };
    same("add.f32 O, A, B;", &two, &|a, b| a + b);
    same("sub.rn.f32 O, A, B;", &two, &|a, b| a - b);
    same("mul.rn.f32 O, A, B;", &two, &|a, b| a * b);
    same("div.rn.f32 O, A, B;", &two, &|a, b| a / b);
    same("sqrt.rn.f32 O, A;", &two[..1], &|a, _| a.sqrt());
    same("rcp.rn.f32 O, A;", &two[..1], &|a, _| 1.0 / a);
    same("abs.f32 O, A;", &two[..1], &|a, _| a.abs());
    same("neg.f32 O, A;", &two[..1], &|a, _| -a);
    // The sign is that of the first.
    same("copysign.f32 O, A, B;", &two, &|a, b| b.copysign(a));
    same("add.sat.f32 O, A, B;", &two, &|a, b| if (a + b).is_nan() { 0.0 } else { (a + b).clamp(0.0, 1.0) });
    same("max.f32 O, A, B;", &two, &f64::max);
    same("min.f32 O, A, B;", &two, &f64::min);
}

#[test]
fn fused_sums_are_exact_before_they_are_rounded() {
    let mut numbers = Numbers::new(5);
    // Whole numbers of 24 bits: products and sums fit into 64.
    let mut whole = |bits: u32| -> Vec<u64> {
        (0..3000).map(|_| u64::from(((numbers.word() >> (32 - bits)) as f32).to_bits())).collect()
    };
    let (a, b, c) = (whole(24), whole(24), whole(24));
    let scaled: Vec<u64> =
        c.iter().map(|bits| u64::from((f32::from_bits(*bits as u32) * 2f32.powi(24)).to_bits())).collect();
    let pairs = |low: &[u64], high: &[u64]| {
        low.iter().zip(high).map(|(low, high)| high << 32 | low).collect::<Vec<_>>()
    };
    let wide = [pairs(&a, &b), pairs(&b, &c), pairs(&c, &a)];
    let operands = [(64, &wide[0][..]), (64, &wide[1][..]), (64, &wide[2][..])];
    assert_computes("fma.rn.f32x2 O, A, B, C;", 64, &operands, |v| {
        let part = |at: u32| {
            let exact = single(v[0] >> at) as i128 * single(v[1] >> at) as i128 + single(v[2] >> at) as i128;
            u64::from((exact as f32).to_bits())
        };
        part(32) << 32 | part(0)
    });
    for third in [&c, &scaled] {
        let three = [(32, &a[..]), (32, &b[..]), (32, &third[..])];
        assert_computes("fma.rn.f32 O, A, B, C;", 32, &three, |v| {
            let exact = single(v[0]) as i128 * single(v[1]) as i128 + single(v[2]) as i128;
            u64::from((exact as f32).to_bits())
        });
    }
}

#[test]
fn nans_and_zeros_in_extremes() {
    let nan = u64::from(f32::NAN.to_bits());
    let (one, minus_zero) = (u64::from(1f32.to_bits()), 0x8000_0000);
    let two = |a: u64, b: u64| [vec![a], vec![b]];
    let run = |name: &str, a: u64, b: u64| {
        let values = two(a, b);
        compute(&format!("{name} O, A, B;"), 32, &[(32, &values[0]), (32, &values[1])])[0]
    };
    for (a, b) in [(nan, one), (one, nan)] {
        assert_eq!(run("max.f32", a, b), one);
        assert_eq!(run("min.f32", a, b), one);
        assert!(single(run("max.NaN.f32", a, b)).is_nan());
        assert!(single(run("min.NaN.f32", a, b)).is_nan());
    }
    assert!(single(run("max.f32", nan, nan)).is_nan());
    assert_eq!(run("max.f32", 0, minus_zero), 0);
    assert_eq!(run("min.f32", 0, minus_zero), minus_zero);
    let holds = |name: &str, a: u64, b: u64| {
        let values = two(a, b);
        compute(&format!("setp.{name}.f32 O, A, B;"), 1, &[(32, &values[0]), (32, &values[1])])[0] == 1
    };
    for ordered in ["eq", "ne", "lt", "le", "gt", "ge", "num"] {
        assert!(!holds(ordered, nan, one), "{ordered}");
    }
    for unordered in ["equ", "neu", "ltu", "leu", "gtu", "geu", "nan"] {
        assert!(holds(unordered, nan, one), "{unordered}");
    }
    assert!(
        holds("eq", 0, minus_zero) && holds("ne", 0, one) && holds("neu", 0, one) && holds("num", 0, one)
    );
}

#[test]
fn approximations_are_near() {
    let mut numbers = Numbers::new(6);
    let a: Vec<u64> = (0..2000).map(|_| u64::from((numbers.float() * 20.0).to_bits())).collect();
    let positive: Vec<u64> = a.iter().map(|bits| bits & 0x7fff_ffff).collect();
    let near = |instruction: &str, values: &[u64], expected: &dyn Fn(f64) -> f64| {
        for (value, found) in values.iter().zip(compute(instruction, 32, &[(32, values)])) {
            let (found, expected) = (single(found), expected(single(*value)));
            assert!(
                (found - expected).abs() <= expected.abs() * 1e-6 + 1e-7,
                "{instruction} of {}",
                single(*value)
            );
        }
    };
    near("ex2.approx.f32 O, A;", &a, &f64::exp2);
    near("ex2.approx.ftz.f32 O, A;", &a, &f64::exp2);
    near("lg2.approx.f32 O, A;", &positive, &f64::log2);
    near("rsqrt.approx.f32 O, A;", &positive, &|value| 1.0 / value.sqrt());
    near("rcp.approx.ftz.f32 O, A;", &a, &|value| 1.0 / value);
    near("sqrt.approx.f32 O, A;", &positive, &f64::sqrt);
    near("tanh.approx.f32 O, A;", &a, &f64::tanh);
    near("sin.approx.f32 O, A;", &a, &f64::sin);
    near("cos.approx.f32 O, A;", &a, &f64::cos);
    let tiny = [1u64, 0x8000_0001, 0x007f_ffff];
    assert_eq!(compute("mul.ftz.f32 O, A, 0f3F800000;", 32, &[(32, &tiny)]), [0, 0x8000_0000, 0]);
    assert_eq!(compute("mul.f32 O, A, 0f3F800000;", 32, &[(32, &tiny)]), tiny);
}

#[test]
fn numbers_become_whole_and_back() {
    let a = singles(7);
    let round = |name: &str| -> fn(f64) -> f64 {
        match name {
            "rni" => f64::round_ties_even,
            "rzi" => f64::trunc,
            "rmi" => f64::floor,
            _ => f64::ceil,
        }
    };
    for mode in ["rni", "rzi", "rmi", "rpi"] {
        let rounded = round(mode);
        assert_computes(&format!("cvt.{mode}.s32.f32 O, A;"), 32, &[(32, &a)], |v| {
            u64::from(rounded(single(v[0])) as i32 as u32)
        });
        assert_computes(&format!("cvt.{mode}.u32.f32 O, A;"), 32, &[(32, &a)], |v| {
            u64::from(rounded(single(v[0])) as u32)
        });
        assert_computes(&format!("cvt.{mode}.s64.f32 O, A;"), 64, &[(32, &a)], |v| {
            rounded(single(v[0])) as i64 as u64
        });
        assert_computes(&format!("cvt.{mode}.sat.s8.f32 O, A;"), 32, &[(32, &a)], |v| {
            u64::from(i32::from(rounded(single(v[0])) as i8) as u32)
        });
        assert_computes(&format!("cvt.{mode}.f32.f32 O, A;"), 32, &[(32, &a)], |v| {
            u64::from((rounded(single(v[0])) as f32).to_bits())
        });
    }
    let mut numbers = Numbers::new(8);
    let words: Vec<u64> = (0..1000).map(|at| u64::from(numbers.word() >> (at % 32))).collect();
    assert_computes("cvt.rn.f32.u32 O, A;", 32, &[(32, &words)], |v| u64::from((v[0] as f32).to_bits()));
    assert_computes("cvt.rn.f32.s32 O, A;", 32, &[(32, &words)], |v| {
        u64::from((v[0] as i32 as f32).to_bits())
    });
    let bytes: Vec<u64> = (0..256).collect();
    assert_computes("cvt.rn.f32.s8 O, A;", 32, &[(16, &bytes)], |v| {
        u64::from(f32::from(v[0] as i8).to_bits())
    });
    let halves = rising(half, 0x7c00);
    assert_computes("cvt.rn.f16.s16 O, A;", 16, &[(16, &bytes)], |v| nearest(v[0] as f64, &halves));
    let short: Vec<u64> = (0..0x7c00).step_by(7).collect();
    assert_computes("cvt.rzi.s32.f16 O, A;", 32, &[(16, &short)], |v| half(v[0]) as i64 as u64);
    let wide: Vec<u64> = a.iter().map(|bits| (single(*bits) * 1.000_000_1).to_bits()).collect();
    assert_computes("cvt.rn.f32.f64 O, A;", 32, &[(64, &wide)], |v| {
        u64::from((f64::from_bits(v[0]) as f32).to_bits())
    });
    assert_computes("cvt.f64.f32 O, A;", 64, &[(32, &a)], |v| single(v[0]).to_bits());
}
