//! pieces of text in their tones → one line of a terminal, cut to its width.

use super::show::{Colour, Look, Tone, cut, paint};

/// Pieces of text, each in its tone.
#[derive(Default)]
pub struct Row(Vec<(String, Tone)>);

impl Row {
    pub fn add(&mut self, text: &str, tone: Tone) {
        self.0.push((text.to_owned(), tone));
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn width(&self) -> usize {
        self.0.iter().map(|(text, _)| text.chars().count()).sum()
    }

    /// Eighths of a cell: U+2588 to U+258F.
    pub fn bar(&mut self, share: f64, cells: usize, tone: Tone) {
        let eighths = (share.clamp(0.0, 1.0) * cells as f64 * 8.0).round() as usize;
        let mut full = "█".repeat(eighths / 8);
        full.extend(
            ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"]
                .get(eighths % 8)
                .copied(),
        );
        let rest = cells - full.chars().count();
        self.add(&full, tone);
        self.add(&"░".repeat(rest), Tone::Dim);
    }

    pub fn fit(&self, columns: usize, look: Look) -> String {
        let mut left = columns;
        let mut text = String::new();
        for (piece, tone) in &self.0 {
            let piece = cut(piece, left);
            left -= piece.chars().count();
            if !piece.is_empty() {
                text.push_str(&paint(&piece, *tone, look));
            }
        }
        match look.colour {
            Colour::Never => text.trim_end().to_owned(),
            Colour::Ansi => text,
        }
    }
}
