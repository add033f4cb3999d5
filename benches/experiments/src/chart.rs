//! Lines as SVG, without anything to install.

use std::fmt::Write as _;

/// Lines over a common grid.
#[derive(Debug)]
pub(crate) struct Chart {
    pub(crate) title: String,
    pub(crate) x_label: String,
    pub(crate) y_label: String,
    pub(crate) x_scale: Scale,
    pub(crate) series: Vec<Series>,
}

/// How an axis is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scale {
    Linear,
    /// In powers of two. Positive numbers only.
    Logarithmic,
}

/// A line with its points.
#[derive(Debug)]
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) points: Vec<Point>,
}

impl Series {
    /// Lines of points by the name of the line that each belongs to, in the order in which the names come.
    pub(crate) fn of_points(points: impl Iterator<Item = (String, Point)>) -> Vec<Self> {
        let mut all: Vec<Self> = Vec::new();
        for (name, point) in points {
            match all.iter_mut().find(|series| series.name == name) {
                Some(series) => series.points.push(point),
                None => all.push(Self {
                    name,
                    points: vec![point],
                }),
            }
        }
        all
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Point {
    pub(crate) x: f64,
    pub(crate) y: f64,
    /// Drawn upwards and downwards from the point.
    pub(crate) error: Option<f64>,
}

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 540.0;
/// Room around the grid: left for numbers, right for names.
const LEFT: f64 = 80.0;
const RIGHT: f64 = 220.0;
const TOP: f64 = 50.0;
const BOTTOM: f64 = 65.0;

/// Told apart by people who see colours differently too (Okabe and Ito's palette, without its yellow); lines beyond them
/// are dashed.
const COLOURS: [&str; 7] = [
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#000000", "#56b4e9", "#e69f00",
];

/// From numbers to places along one axis.
struct Axis {
    scale: Scale,
    from: f64,
    to: f64,
    ticks: Vec<f64>,
}

impl Axis {
    /// Covers the values, and ends at round numbers.
    fn over(values: impl Iterator<Item = f64> + Clone, scale: Scale) -> Self {
        let low = values.clone().fold(f64::INFINITY, f64::min);
        let high = values.fold(f64::NEG_INFINITY, f64::max);
        let (low, high) = if low.is_finite() && high.is_finite() {
            (low, high)
        } else {
            (1.0, 2.0)
        };
        let ticks: Vec<f64> = match scale {
            Scale::Logarithmic => {
                let (first, last) = (low.log2().floor() as i32, high.log2().ceil() as i32);
                (first..=last.max(first + 1))
                    .map(|power| f64::from(power).exp2())
                    .collect()
            }
            Scale::Linear => {
                let step = round_step((high - low).max(1e-3 * high.abs()).max(1e-9) / 6.0);
                let (first, last) = ((low / step).floor() as i64, (high / step).ceil() as i64);
                (first..=last.max(first + 1))
                    .map(|tick| tick as f64 * step)
                    .collect()
            }
        };
        Self {
            scale,
            from: ticks[0],
            to: ticks[ticks.len() - 1],
            ticks,
        }
    }

    /// 0 at the beginning of the axis, 1 at its end.
    fn share(&self, value: f64) -> f64 {
        match self.scale {
            Scale::Linear => (value - self.from) / (self.to - self.from),
            Scale::Logarithmic => (value / self.from).log2() / (self.to / self.from).log2(),
        }
    }
}

/// The nearest of 1, 2 and 5 times a power of ten that is not smaller.
fn round_step(step: f64) -> f64 {
    let power = 10_f64.powf(step.log10().floor());
    let factor = [1.0, 2.0, 5.0]
        .into_iter()
        .find(|factor| factor * power >= step * 0.999);
    factor.unwrap_or(10.0) * power
}

impl Chart {
    /// Held-out loss on the way: curves by name, each of losses after so many tokens.
    pub(crate) fn of_curves<'a, C>(curves: impl Iterator<Item = (String, C)>) -> Self
    where
        C: IntoIterator<Item = &'a (u64, f64)>,
    {
        let point = |(tokens, loss): &(u64, f64)| Point {
            x: *tokens as f64 / 1000.0,
            y: *loss,
            error: None,
        };
        let series = curves.map(|(name, curve)| Series {
            name,
            points: curve.into_iter().map(point).collect(),
        });
        Self {
            title: "Held-out loss on the way".to_owned(),
            x_label: "thousand tokens".to_owned(),
            y_label: "nats per token, mean over seeds".to_owned(),
            x_scale: Scale::Linear,
            series: series.collect(),
        }
    }

    /// The picture, complete.
    pub(crate) fn to_svg(&self) -> String {
        let points = || self.series.iter().flat_map(|series| &series.points);
        let x_axis = Axis::over(points().map(|point| point.x), self.x_scale);
        let ends = points().flat_map(|point| {
            let error = point.error.unwrap_or_default();
            [point.y - error, point.y + error]
        });
        let y_axis = Axis::over(ends, Scale::Linear);
        let x_place = |value: f64| LEFT + x_axis.share(value) * (WIDTH - LEFT - RIGHT);
        let y_place = |value: f64| HEIGHT - BOTTOM - y_axis.share(value) * (HEIGHT - TOP - BOTTOM);

        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
             font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
        );
        let mut add = |line: std::fmt::Arguments<'_>| {
            let _ = writeln!(svg, "{line}");
        };
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        let centre = (LEFT + right) / 2.0;
        add(format_args!(
            "<text x=\"{LEFT}\" y=\"28\" font-size=\"17\">{}</text>",
            escaped(&self.title)
        ));
        add(format_args!(
            "<text x=\"{centre}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            HEIGHT - 18.0,
            escaped(&self.x_label)
        ));
        let middle = (TOP + bottom) / 2.0;
        add(format_args!(
            "<text x=\"20\" y=\"{middle}\" text-anchor=\"middle\" transform=\"rotate(-90 20 {middle})\">{}</text>",
            escaped(&self.y_label)
        ));
        for tick in &x_axis.ticks {
            let x = x_place(*tick);
            add(format_args!(
                "<path d=\"M{x:.1} {TOP}V{bottom}\" stroke=\"#ddd\"/><text x=\"{x:.1}\" y=\"{}\" \
                 text-anchor=\"middle\">{}</text>",
                bottom + 20.0,
                number(*tick)
            ));
        }
        for tick in &y_axis.ticks {
            let y = y_place(*tick);
            add(format_args!(
                "<path d=\"M{LEFT} {y:.1}H{right}\" stroke=\"#ddd\"/><text x=\"{}\" y=\"{:.1}\" \
                 text-anchor=\"end\">{}</text>",
                LEFT - 8.0,
                y + 4.0,
                number(*tick)
            ));
        }
        for (index, series) in self.series.iter().enumerate() {
            let colour = COLOURS[index % COLOURS.len()];
            let dashes = match index / COLOURS.len() {
                0 => String::new(),
                round => format!(" stroke-dasharray=\"{} 3\"", 8 / round.min(4)),
            };
            let mut sorted = series.points.clone();
            sorted.sort_by(|a, b| a.x.total_cmp(&b.x));
            let mut path = String::new();
            for (nth, point) in sorted.iter().enumerate() {
                let (x, y) = (x_place(point.x), y_place(point.y));
                let command = if nth == 0 { 'M' } else { 'L' };
                let _ = write!(path, "{command}{x:.1} {y:.1}");
            }
            add(format_args!(
                "<path d=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"{dashes}/>"
            ));
            for point in &sorted {
                let (x, y) = (x_place(point.x), y_place(point.y));
                add(format_args!(
                    "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>"
                ));
                if let Some(error) = point.error {
                    let (top, foot) = (y_place(point.y + error), y_place(point.y - error));
                    add(format_args!(
                        "<path d=\"M{x:.1} {top:.1}V{foot:.1}\" stroke=\"{colour}\"/>"
                    ));
                }
            }
            let y = TOP + 10.0 + 20.0 * index as f64;
            let (start, end) = (right + 14.0, right + 38.0);
            add(format_args!(
                "<path d=\"M{start} {y}H{end}\" stroke=\"{colour}\" stroke-width=\"2\"{dashes}/><text x=\"{}\" \
                 y=\"{}\">{}</text>",
                end + 6.0,
                y + 4.0,
                escaped(&series.name)
            ));
        }
        svg + "</svg>\n"
    }
}

/// As short as it can be.
fn number(value: f64) -> String {
    let text = format!("{value:.4}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0" } else { text }.to_owned()
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(points: &[(f64, f64)], x_scale: Scale) -> String {
        let points = points.iter().map(|&(x, y)| Point {
            x,
            y,
            error: Some(0.5),
        });
        Chart {
            title: "a < b & c".to_owned(),
            x_label: "x".to_owned(),
            y_label: "y".to_owned(),
            x_scale,
            series: vec![Series {
                name: "one".to_owned(),
                points: points.collect(),
            }],
        }
        .to_svg()
    }

    #[test]
    fn an_axis_ends_at_round_numbers_around_its_values() {
        let axis = Axis::over([1.93, 2.61].into_iter(), Scale::Linear);
        assert!((axis.from - 1.8).abs() < 1e-9 && (axis.to - 2.8).abs() < 1e-9);
        assert!(axis.share(1.93) > 0.0 && axis.share(2.61) < 1.0);
        let axis = Axis::over([0.5, 100.0].into_iter(), Scale::Logarithmic);
        assert_eq!((axis.from, axis.to, axis.ticks.len()), (0.5, 128.0, 9));
        assert!((axis.share(8.0) - 0.5).abs() < 1e-12);
    }

    #[test]
    fn every_point_lies_inside_the_picture_even_if_there_is_only_one_or_none() {
        for scale in [Scale::Linear, Scale::Logarithmic] {
            for points in [&[(1.0, 2.0), (64.0, -3.0)][..], &[(4.0, 0.0)], &[]] {
                let svg = chart(points, scale);
                assert_eq!(svg.matches("<circle").count(), points.len());
                assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
                for part in svg.split("cx=\"").skip(1) {
                    let x: f64 = part.split('"').next().unwrap().parse().unwrap();
                    assert!((LEFT..=WIDTH - RIGHT).contains(&x), "{x}");
                }
            }
        }
    }

    #[test]
    fn text_cannot_break_the_picture() {
        assert!(chart(&[], Scale::Linear).contains("a &lt; b &amp; c"));
    }
}
