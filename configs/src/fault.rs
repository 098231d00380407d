//! What is wrong with a document, where, and how to mend it.

use std::fmt;

/// One thing wrong with a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Line of the file, counted from 1; a snapshot from the wire has none.
    pub line: Option<usize>,
    /// `service[3] "web".vip`: the index as in the document and, where there is one, the name.
    /// Empty: the document itself.
    pub path: String,
    pub problem: String,
    pub remedy: String,
}

impl Fault {
    pub fn new(path: impl Into<String>, problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { line: None, path: path.into(), problem: problem.into(), remedy: remedy.into() }
    }

    #[must_use]
    pub fn at_line(mut self, line: usize) -> Self {
        self.line = Some(line);
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        write!(f, "{}; {}", self.problem, self.remedy)
    }
}

/// Every fault of one document, in its order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Faults {
    /// The file as the operator named it, or the owner whose snapshot it is.
    pub name: String,
    pub list: Vec<Fault>,
}

impl Faults {
    /// `Ok(value)` when the list is empty.
    pub fn or<T>(name: &str, list: Vec<Fault>, value: T) -> Result<T, Self> {
        if list.is_empty() { Ok(value) } else { Err(Self { name: name.into(), list }) }
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.list.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            match fault.line {
                Some(line) => write!(f, "{}:{line}: {fault}", self.name)?,
                None => write!(f, "{}: {fault}", self.name)?,
            }
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_per_fault_with_file_line_path_and_remedy() {
        let list = vec![
            Fault::new(
                r#"service[3] "web".vip"#,
                "is the box's own address 10.0.0.1",
                "choose an address nothing else uses",
            )
            .at_line(14),
            Fault::new("", "cannot be read: permission denied", "make it readable"),
        ];
        let faults = Faults::or("lb.toml", list, ()).expect_err("two faults");
        assert_eq!(
            faults.to_string(),
            "lb.toml:14: service[3] \"web\".vip: is the box's own address 10.0.0.1; choose an address nothing else uses\n\
             lb.toml: cannot be read: permission denied; make it readable"
        );
    }
}
