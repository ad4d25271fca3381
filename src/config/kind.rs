//! a value, and what its key wants → whether it fits, else what to write instead.

use super::diagnose::Severity;
use super::file::{Node, Value};
use super::found::Check;
use super::keys::Shape;

/// Whether the value is what the key wants; tells where it is not.
pub fn kind(cx: &mut Check, shape: Shape, node: &Node, name: &str) -> bool {
    if !shape.accepts(&node.value) {
        let message = format!(
            "`{}` must be {}, not {}",
            show(name),
            shape.wants(),
            node.value.what()
        );
        // A password is not repeated in a message.
        let remedy = match name {
            "password" => Some("write it in quotes".to_owned()),
            _ => rewrite(shape, &node.value, cx.layout.sources.text(node.place)),
        };
        cx.told(Severity::Error, node.place, message, remedy);
        return false;
    }
    match &node.value {
        Value::Text(text) if text.contains('\0') => {
            let message = format!("`{}` contains a NUL character", show(name));
            cx.error(
                node.place,
                message,
                "no path, name or argument can hold one",
            );
            false
        }
        Value::List(items) => {
            let item = shape.item().unwrap_or(shape);
            let before = cx.count();
            for (index, inner) in items.iter().enumerate() {
                kind(cx, item, inner, &format!("{name}[{index}]"));
            }
            cx.count() == before
        }
        _ => true,
    }
}

/// The value as it should have been written, where that can be guessed.
fn rewrite(shape: Shape, value: &Value, typed: &str) -> Option<String> {
    match (shape, value) {
        (Shape::Text, Value::Integer(_) | Value::Float | Value::Flag(_)) => {
            Some(format!("write \"{typed}\", in quotes"))
        }
        (Shape::Duration, Value::Integer(_)) => Some(format!("write \"{typed}s\" for seconds")),
        (Shape::Integer, Value::Text(text)) if text.parse::<i64>().is_ok() => {
            Some(format!("write {text}, without quotes"))
        }
        (Shape::Flag, Value::Text(text)) if text == "true" || text == "false" => {
            Some(format!("write {text}, without quotes"))
        }
        (Shape::Fields(keys), _) => {
            let names: Vec<&str> = keys.iter().map(|key| key.name).collect();
            Some(format!("its keys are {}", names.join(", ")))
        }
        (Shape::Texts, Value::Text(_)) => Some(format!("write [{typed}], in brackets")),
        _ => None,
    }
}

/// A name of the file in a message: its control characters would garble the terminal.
pub fn show(name: &str) -> String {
    name.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}
