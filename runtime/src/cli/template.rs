//! How a list is printed: as a table, as JSON, or a line each after a template in docker's and podman's words.
//!
//! Invariant: a template has text and fields, nothing more: no template runs anything, and one with a field that is not
//! there is refused before the list is made.

use anyhow::{Result, bail};

/// `--format`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Listing {
    /// For people.
    Table,
    /// For programs: the same fields in every version.
    Json,
    /// As the user says.
    Template(Template),
}

/// Text and fields in turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Template(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Field(String),
}

impl Listing {
    /// What the words mean for a list with these fields.
    pub(super) fn new(text: &str, fields: &[&str]) -> Result<Self> {
        match text {
            "table" => Ok(Listing::Table),
            "json" => Ok(Listing::Json),
            _ => Template::new(text, fields).map(Listing::Template),
        }
    }
}

impl Template {
    fn new(text: &str, fields: &[&str]) -> Result<Self> {
        let text = text.replace("\\t", "\t").replace("\\n", "\n");
        let mut parts = Vec::new();
        let mut rest = text.as_str();
        while let Some((before, field)) = rest.split_once("{{") {
            let Some((field, after)) = field.split_once("}}") else { bail!("`{{{{` has no `}}}}`") };
            let name = field.trim().strip_prefix('.').unwrap_or_default();
            if !fields.contains(&name) {
                bail!("`{}` is no field; there are .{}", field.trim().escape_debug(), fields.join(", ."));
            }
            parts.extend([Part::Text(before.to_owned()), Part::Field(name.to_owned())]);
            rest = after;
        }
        if parts.is_empty() {
            bail!("write table, json, or a template such as {{{{.ID}}}}");
        }
        parts.push(Part::Text(rest.to_owned()));
        Ok(Template(parts))
    }

    /// One line.
    pub(super) fn fill(&self, value: impl Fn(&str) -> Option<String>) -> String {
        let part = |part: &Part| match part {
            Part::Text(text) => text.clone(),
            Part::Field(field) => value(field).unwrap_or_default(),
        };
        self.0.iter().map(part).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_text_and_fields() {
        let fields = ["ID", "Name"];
        let filled = |text: &str| match Listing::new(text, &fields).unwrap() {
            Listing::Template(template) => template.fill(|field| Some(format!("<{field}>"))),
            other => format!("{other:?}"),
        };
        assert_eq!(filled("{{.ID}}"), "<ID>");
        assert_eq!(filled("a {{ .Name }}\\t{{.ID}}}"), "a <Name>\t<ID>}");
        assert_eq!((filled("table"), filled("json")), ("Table".into(), "Json".into()));
        for bad in ["", "plain", "{{.ID", "{{.Nope}}", "{{ID}}", "{{}}", "{{range .}}"] {
            assert!(Listing::new(bad, &fields).is_err(), "{bad}");
        }
    }
}
