//! Quantities as people read them.

/// Bytes in binary units with three or four significant digits: `988.1 MiB`.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    // 1023.95 would print as 1024.0.
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// Bytes in two spellings, for errors: `1073741824 bytes (1.0 GiB)`.
pub(crate) fn exact_bytes(count: u64) -> String {
    if count < 1024 { format!("{count} bytes") } else { format!("{count} bytes ({})", bytes(count)) }
}

/// A number of parameters as model names spell it: `494 M`, `7.62 B`.
pub(crate) fn parameters(count: u64) -> String {
    let value = count as f64;
    if value >= 9.995e8 {
        format!("{:.2} B", value / 1e9)
    } else if value >= 9.995e5 {
        format!("{:.0} M", value / 1e6)
    } else {
        grouped(count)
    }
}

/// An integer with a thin separator between thousands: `151 936`.
pub(crate) fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

/// A number of things: `1 place`, `24 places`.
pub(crate) fn count(number: u64, thing: &str) -> String {
    let ending = if number == 1 { "" } else { "s" };
    format!("{} {thing}{ending}", grouped(number))
}

/// A rate of tokens: three significant digits.
pub(crate) fn tokens_per_s(rate: f64) -> String {
    if rate >= 99.95 {
        format!("{rate:.0}")
    } else if rate >= 9.995 {
        format!("{rate:.1}")
    } else {
        format!("{rate:.2}")
    }
}

/// A duration given in microseconds: `340 µs`, `12.3 ms`, `4.56 s`.
pub(crate) fn duration(duration_us: u64) -> String {
    match duration_us {
        0..1_000 => format!("{duration_us} µs"),
        1_000..1_000_000 => format!("{:.1} ms", duration_us as f64 / 1e3),
        _ => format!("{:.2} s", duration_us as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::{bytes, count, duration, exact_bytes, grouped, parameters, tokens_per_s};

    #[test]
    fn bytes_change_unit_where_the_digits_would_overflow() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1024), "1.0 KiB");
        assert_eq!(bytes(1024 * 1024 - 1), "1.0 MiB");
        assert_eq!(bytes(988 * 1024 * 1024 + 100_000), "988.1 MiB");
        assert_eq!(exact_bytes(1 << 30), "1073741824 bytes (1.0 GiB)");
    }

    #[test]
    fn parameters_read_like_model_names() {
        assert_eq!(parameters(494_032_768), "494 M");
        assert_eq!(parameters(7_615_616_512), "7.62 B");
        assert_eq!(parameters(12_345), "12 345");
    }

    #[test]
    fn other_quantities_keep_three_digits() {
        assert_eq!(grouped(151_936), "151 936");
        assert_eq!(grouped(7), "7");
        assert_eq!(count(1, "place"), "1 place");
        assert_eq!(count(1000, "step"), "1 000 steps");
        assert_eq!(tokens_per_s(196.4), "196");
        assert_eq!(tokens_per_s(30.04), "30.0");
        assert_eq!(tokens_per_s(6.911), "6.91");
        assert_eq!(duration(340), "340 µs");
        assert_eq!(duration(12_345), "12.3 ms");
        assert_eq!(duration(4_560_000), "4.56 s");
    }
}
