//! The comparison as one page of HTML: plots to look at, tables to look things up in.
//!
//! The page needs nothing beside it: no network, no scripts, no fonts of its own. It follows the
//! reader's choice of light or dark, and reads on a telephone.

mod figures;
mod kernels;
mod labels;
mod roofline;
mod scale;
mod speeds;
mod svg;

use self::svg::escape;
use super::comparison::{Comparison, Measured};
use super::table;
use super::workload::Phase;

const STYLE: &str = include_str!("style.css");

/// Colours that the style sheet has for entrants; more entrants than these begin again.
const COLOURS: usize = 8;

/// The whole page.
pub(super) fn page(comparison: &Comparison) -> String {
    let mut sections = String::new();
    sections.push_str(&section("Speed", &speed_text(comparison), &speeds(comparison)));
    if let Some(roofline) = roofline::draw(comparison) {
        let drawing = format!("<figure class=\"wide\">{}{roofline}</figure>\n", legend(comparison, true));
        sections.push_str(&section("Roofline", ROOFLINE_TEXT, &drawing));
    }
    if let Some(kernels) = kernel_drawings(comparison) {
        sections.push_str(&section("Time in each kernel", KERNEL_TEXT, &kernels));
    }
    sections.push_str(&section("Figures", "", &figures::tables(comparison)));
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n{header}{sections}</main>\n</body>\n</html>\n",
        title = escape(&title(comparison)),
        header = header(comparison),
    )
}

const ROOFLINE_TEXT: &str = "Each mark is a kernel of a program; its area is its share of the time. \
    The slope is what memory allows, the ceilings what the multipliers allow, each as wide as its samples spread. \
    The distance from a mark up to the roof is what is left to win. \
    Kernels that take less than a thousandth of the time are left out.";

const KERNEL_TEXT: &str = "Behind each bar: the share of the machine's peak, measured before and after; \
    of generated tokens, the share of what was read around each. \
    Kernels that take less than a hundredth of the longest one's time are in the tables below.";

/// `qwen2-0.5b: p05-int4, p05-int8, llama.cpp Q4_0`.
fn title(comparison: &Comparison) -> String {
    let names: Vec<&str> =
        comparison.entrants.iter().map(|entrant| entrant.description.name.as_str()).collect();
    let model = comparison.entrants.first().map_or("", |entrant| entrant.description.model.as_str());
    format!("{model}: {}", names.join(", "))
}

fn header(comparison: &Comparison) -> String {
    let model = comparison.entrants.first().map_or("", |entrant| entrant.description.model.as_str());
    let tests: Vec<String> =
        comparison.workload.phases().map(|phase| comparison.workload.sentence(phase)).collect();
    let mut text = format!(
        "<header>\n<p class=\"tool\">qwen2c compare</p>\n<h1>{}</h1>\n<p>{}: {}.</p>\n",
        escape(model),
        escape(&table::heading(comparison)),
        escape(&tests.join(", ")),
    );
    if let Some(note) = table::note_on_noise(comparison) {
        text.push_str(&format!("<p class=\"note\">{}</p>\n", escape(&note)));
    }
    text.push_str("<div class=\"cards\">\n");
    for phase in comparison.workload.phases() {
        text.push_str(&card(comparison, phase));
    }
    text.push_str("</div>\n</header>\n");
    text
}

/// The fastest entrant of a phase, in large letters.
fn card(comparison: &Comparison, phase: Phase) -> String {
    let by_speed = |one: &(&Measured, &super::comparison::TestResult),
                    other: &(&Measured, &super::comparison::TestResult)| {
        one.1.tokens_per_s.median.total_cmp(&other.1.tokens_per_s.median)
    };
    let Some((fastest, result)) = comparison.results(phase).max_by(by_speed) else { return String::new() };
    let element = comparison.peak.as_ref().map_or("f32", |peak| peak.matrix_operations_per_s().1);
    let limits = [
        (result.share_of_read, "of read bandwidth".to_owned()),
        (result.share_of_matrix, format!("of {element} rate")),
    ];
    // The nearer limit is the one that matters.
    let limit = limits
        .into_iter()
        .filter_map(|(share, of)| share.map(|share| (share, of)))
        .max_by(|one, other| one.0.total_cmp(&other.0))
        .map_or_else(String::new, |(share, of)| format!(", {:.0} % {of}", 100.0 * share));
    format!(
        "<div class=\"card\"><p class=\"test\">Fastest: {}</p><p class=\"number\">{} <small>tokens/s</small></p>\
         <p><span class=\"key {}\"></span>{}{}</p></div>\n",
        escape(&comparison.workload.sentence(phase)),
        crate::units::tokens_per_s(result.tokens_per_s.median),
        colour(comparison, fastest),
        escape(&fastest.description.name),
        limit
    )
}

fn section(heading: &str, text: &str, content: &str) -> String {
    let text = if text.is_empty() { String::new() } else { format!("<p>{}</p>\n", escape(text)) };
    format!("<section>\n<h2>{heading}</h2>\n{text}{content}</section>\n")
}

fn speed_text(comparison: &Comparison) -> String {
    let first = comparison.entrants.first().map_or("", |entrant| entrant.description.name.as_str());
    format!(
        "Bars are medians of {}, whiskers reach from the slowest to the fastest. \
         Ratios compare with {first} in the same turn.",
        crate::units::count(comparison.workload.turns, "turn")
    )
}

fn speeds(comparison: &Comparison) -> String {
    let drawings = comparison.workload.phases().map(|phase| {
        let caption = capital(&comparison.workload.sentence(phase));
        figure(&caption, &speeds::draw(comparison, phase))
    });
    format!("<div class=\"columns\">\n{}</div>\n", drawings.collect::<String>())
}

fn kernel_drawings(comparison: &Comparison) -> Option<String> {
    let drawings: String = comparison
        .workload
        .phases()
        .filter_map(|phase| {
            let caption = capital(&comparison.workload.sentence(phase));
            Some(figure(&caption, &kernels::draw(comparison, phase)?))
        })
        .collect();
    let legend = legend(comparison, false);
    (!drawings.is_empty()).then(|| format!("{legend}<div class=\"columns\">\n{drawings}</div>\n"))
}

fn figure(caption: &str, drawing: &str) -> String {
    format!("<figure><figcaption>{}</figcaption>\n{drawing}</figure>\n", escape(caption))
}

/// Which colour is which program, without the peers, which tell of no kernels; and which shape is which phase.
fn legend(comparison: &Comparison, with_shapes: bool) -> String {
    let programs = comparison.entrants.iter().filter(|entrant| !entrant.description.is_peer);
    let mut items: String = programs
        .map(|entrant| {
            let (class, name) = (colour(comparison, entrant), escape(&entrant.description.name));
            format!("<li><span class=\"key {class}\"></span>{name}</li>\n")
        })
        .collect();
    for phase in comparison.workload.phases().filter(|_| with_shapes) {
        let (class, name) = match phase {
            Phase::Prompt => ("key shape", "prompt"),
            Phase::Generation => ("key shape round", "generation"),
        };
        items.push_str(&format!("<li><span class=\"{class}\"></span>{name}</li>\n"));
    }
    format!("<ul class=\"legend\">\n{items}</ul>\n")
}

/// The class of an entrant's colour.
fn colour(comparison: &Comparison, entrant: &Measured) -> String {
    let name = &entrant.description.name;
    let index = comparison.entrants.iter().position(|other| other.description.name == *name);
    format!("c{}", index.unwrap_or(0) % COLOURS)
}

/// A kernel's name without the number of rows it is made for, which the phase tells already. What stands
/// behind the rows tells kernels of the same shape apart.
fn short_name(name: &str) -> String {
    let Some((short, rest)) = name.rsplit_once("_rows") else { return name.to_owned() };
    let behind_rows = rest.trim_start_matches(|character: char| character.is_ascii_digit());
    let is_rows = behind_rows.len() < rest.len() && (behind_rows.is_empty() || behind_rows.starts_with('.'));
    if is_rows { format!("{short}{behind_rows}") } else { name.to_owned() }
}

fn capital(sentence: &str) -> String {
    let mut characters = sentence.chars();
    let first = characters.next().map(|first| first.to_uppercase().to_string());
    first.unwrap_or_default() + characters.as_str()
}

#[cfg(test)]
mod tests {
    use super::short_name;

    #[test]
    fn kernels_are_shown_without_their_rows() {
        assert_eq!(short_name("matmul_9728x896_silu_multiply_rows256"), "matmul_9728x896_silu_multiply");
        assert_eq!(short_name("quantize_rows_896_rows1.2"), "quantize_rows_896.2");
        assert_eq!(short_name("gather_rows_896"), "gather_rows_896");
        assert_eq!(short_name("softmax"), "softmax");
    }
}
