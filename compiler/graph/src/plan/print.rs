//! Text form of the stage `plan`.

use std::fmt::Write;

use super::{Plan, PlannedBuffer};

/// The tables of buffers and weights, and the totals in two spellings.
pub fn print_plan(plan: &Plan) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "arena     {}", two_spellings(plan.arena_bytes));
    let _ = writeln!(text, "kv caches {}", two_spellings(plan.kv_cache_bytes));
    let _ = writeln!(text, "weights   {}", two_spellings(plan.weight_bytes));
    print_buffers(
        &mut text,
        "shared by all lists",
        plan.buffers.iter().filter(|buffer| buffer.list.is_none()),
    );
    for (index, list) in plan.lists.iter().enumerate() {
        let title = format!(
            "list {}: rows {}, logit rows {}, body {} steps, head {} steps, {} phases",
            list.name,
            list.max_rows,
            list.max_logit_rows,
            list.body.len(),
            list.head.len(),
            list.phases()
        );
        print_buffers(&mut text, &title, plan.buffers.iter().filter(|buffer| buffer.list == Some(index)));
    }
    text.push_str("\nweights\n          offset           bytes  name\n");
    for placed in &plan.weights {
        let _ = writeln!(
            text,
            "{:>16} {:>15}  {} {} {}",
            placed.offset, placed.bytes, placed.weight.name, placed.weight.ty, placed.layout
        );
    }
    text
}

fn print_buffers<'a>(text: &mut String, title: &str, buffers: impl Iterator<Item = &'a PlannedBuffer>) {
    let _ = writeln!(text, "\n{title}\n          offset           bytes  steps        name");
    for buffer in buffers {
        let steps = match buffer.list {
            Some(_) => format!("{}-{}", buffer.first_step, buffer.last_step),
            None => "always".to_owned(),
        };
        let _ = writeln!(text, "{:>16} {:>15}  {steps:<12} {}", buffer.offset, buffer.bytes, buffer.name);
    }
}

/// `1572864 bytes (1.50 MiB)`.
fn two_spellings(bytes: u64) -> String {
    let (unit, name) = match bytes {
        0..=0xf_ffff => (1_u64 << 10, "KiB"),
        0x10_0000..=0x3fff_ffff => (1 << 20, "MiB"),
        _ => (1 << 30, "GiB"),
    };
    format!("{bytes} bytes ({:.2} {name})", bytes as f64 / unit as f64)
}
