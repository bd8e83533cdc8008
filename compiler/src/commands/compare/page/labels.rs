//! Names beside points: each where it covers nothing, or nowhere.

use super::svg::Anchor;

/// Mean width of a character of a label.
const CHARACTER_WIDTH: f64 = 6.2;
const HEIGHT: f64 = 12.0;
/// Between a point and its name.
const DISTANCE: f64 = 4.0;

/// A box: left, top, right, bottom.
#[derive(Clone, Copy)]
struct Area(f64, f64, f64, f64);

impl Area {
    fn of_text(at: (f64, f64), anchor: Anchor, text: &str) -> Self {
        let width = CHARACTER_WIDTH * text.chars().count() as f64;
        let left = match anchor {
            Anchor::Start => at.0,
            Anchor::Middle => at.0 - width / 2.0,
            Anchor::End => at.0 - width,
        };
        Self(left, at.1 - HEIGHT * 0.8, left + width, at.1 + HEIGHT * 0.2)
    }

    fn overlaps(self, other: Self) -> bool {
        self.0 < other.2 && other.0 < self.2 && self.1 < other.3 && other.1 < self.3
    }
}

/// Where a name stands.
#[derive(Clone, Copy)]
pub(super) struct Place {
    /// Its position.
    pub(super) at: (f64, f64),
    /// Which end of it stands there.
    pub(super) anchor: Anchor,
    /// It wants a line to its point.
    pub(super) is_far: bool,
}

/// What is taken already.
pub(super) struct Labels {
    frame: Area,
    taken: Vec<Area>,
}

impl Labels {
    /// Nothing is taken in a frame with these corners.
    pub(super) fn within(corner: (f64, f64), opposite: (f64, f64)) -> Self {
        Self { frame: Area(corner.0, corner.1, opposite.0, opposite.1), taken: Vec::new() }
    }

    /// Takes the place of a point. Its rim may be touched, else a crowd of points would have no names.
    pub(super) fn block(&mut self, center: (f64, f64), radius: f64) {
        let half = radius * 0.7;
        self.taken.push(Area(center.0 - half, center.1 - half, center.0 + half, center.1 + half));
    }

    /// Takes the place of a text that stands already.
    pub(super) fn block_text(&mut self, at: (f64, f64), anchor: Anchor, text: &str) {
        self.taken.push(Area::of_text(at, anchor, text));
    }

    /// A place for the name of a point, which is taken from now on: beside it, or a little further away.
    pub(super) fn beside(&mut self, center: (f64, f64), radius: f64, text: &str) -> Option<Place> {
        let is_free = |&Place { at, anchor, .. }: &Place| {
            let area = Area::of_text(at, anchor, text);
            let Area(left, top, right, bottom) = self.frame;
            area.0 >= left
                && area.1 >= top
                && area.2 <= right
                && area.3 <= bottom
                && !self.taken.iter().any(|&taken| area.overlaps(taken))
        };
        let steps = [0.0, 14.0, 28.0, 42.0];
        let found = steps.into_iter().flat_map(|step| around(center, radius, step)).find(is_free)?;
        self.block_text(found.at, found.anchor, text);
        Some(found)
    }
}

/// The places around a point at some distance from its rim, the best first.
fn around(center: (f64, f64), radius: f64, step: f64) -> [Place; 8] {
    let (x, y) = center;
    let away = radius + DISTANCE + step;
    let diagonal = away * 0.75;
    let place = |at: (f64, f64), anchor| Place { at, anchor, is_far: step > 0.0 };
    [
        place((x + away, y + 4.0), Anchor::Start),
        place((x - away, y + 4.0), Anchor::End),
        place((x + diagonal, y - diagonal), Anchor::Start),
        place((x + diagonal, y + diagonal + 8.0), Anchor::Start),
        place((x - diagonal, y - diagonal), Anchor::End),
        place((x - diagonal, y + diagonal + 8.0), Anchor::End),
        place((x, y - away), Anchor::Middle),
        place((x, y + away + 9.0), Anchor::Middle),
    ]
}

#[cfg(test)]
mod tests {
    use super::Labels;

    #[test]
    fn a_name_goes_where_nothing_is_and_stays_in_the_frame() {
        let mut labels = Labels::within((0.0, 0.0), (200.0, 100.0));
        let first = labels.beside((50.0, 50.0), 5.0, "matmul").map(|place| place.at);
        assert_eq!(first, Some((59.0, 54.0)), "to the right");
        let second = labels.beside((50.0, 50.0), 5.0, "matmul").map(|place| place.at);
        assert_eq!(second, Some((41.0, 54.0)), "the right is taken");
        let at_the_edge = labels.beside((195.0, 80.0), 5.0, "matmul").map(|place| place.at);
        assert_eq!(at_the_edge, Some((186.0, 84.0)), "the right is outside");
        assert!(labels.beside((100.0, 20.0), 5.0, &"long".repeat(20)).is_none());
        let mut crowd = Labels::within((0.0, 0.0), (200.0, 100.0));
        crowd.block((50.0, 50.0), 20.0);
        let place = crowd.beside((50.0, 50.0), 5.0, "matmul").expect("there is room further away");
        assert!(place.is_far && place.at == (73.0, 54.0));
    }
}
