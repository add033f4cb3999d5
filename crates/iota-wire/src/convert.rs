//! Between generated messages and the values of the protocol.
//!
//! Towards the wire, every value has a message (`From`). From the wire, nothing is believed (`TryFrom`): an id has its
//! exact length, a choice is made, a list is within its bound, a range does not run backwards. What does not fit is a
//! [`ConversionError`] that names the field, never a panic.
//!
//! One value has no way back: a replay inside a replay. The protocol never makes one, and a message that nests to any
//! depth is an attack on whoever unfolds it.

mod grant;
mod id;
mod object;
mod outcome;
mod run;
mod work;

/// A message that is well-formed protobuf but not a value of the protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {problem}")]
pub struct ConversionError {
    path: String,
    problem: String,
}

impl ConversionError {
    /// `problem` with the field at `path`, such as `lease.work.range`.
    pub fn new(path: impl Into<String>, problem: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            problem: problem.into(),
        }
    }

    /// The field, from the outermost message inwards, with indices: `leases[3].lease.session`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// What is wrong with it.
    pub fn problem(&self) -> &str {
        &self.problem
    }

    /// The same problem, seen from the message that has the offending one in `field`.
    fn within(mut self, field: &str) -> Self {
        let separator = if self.path.is_empty() { "" } else { "." };
        self.path = format!("{field}{separator}{}", self.path);
        self
    }
}

/// A message that must be there.
pub(crate) fn required<Message, Value>(
    field: &str,
    message: Option<Message>,
) -> Result<Value, ConversionError>
where
    Value: TryFrom<Message, Error = ConversionError>,
{
    let message = message.ok_or_else(|| ConversionError::new(field, "is missing"))?;
    Value::try_from(message).map_err(|error| error.within(field))
}

/// A message that may be absent.
fn optional<Message, Value>(
    field: &str,
    message: Option<Message>,
) -> Result<Option<Value>, ConversionError>
where
    Value: TryFrom<Message, Error = ConversionError>,
{
    message
        .map(|message| Value::try_from(message).map_err(|error| error.within(field)))
        .transpose()
}

/// A list of at most `max` messages.
fn repeated<Message, Value>(
    field: &str,
    messages: Vec<Message>,
    max: usize,
) -> Result<Vec<Value>, ConversionError>
where
    Value: TryFrom<Message, Error = ConversionError>,
{
    at_most(field, messages.len(), max, "entries")?;
    let convert = |(index, message)| {
        Value::try_from(message)
            .map_err(|error: ConversionError| error.within(&format!("{field}[{index}]")))
    };
    messages.into_iter().enumerate().map(convert).collect()
}

/// Exactly `N` bytes.
fn exact<const N: usize>(field: &str, bytes: &[u8]) -> Result<[u8; N], ConversionError> {
    bytes.try_into().map_err(|_| {
        ConversionError::new(field, format!("has {} bytes instead of {N}", bytes.len()))
    })
}

/// One of the values that an enumeration has in this version. Generated enumerations travel as plain numbers.
pub(crate) fn chosen<Message, Value>(field: &str, number: i32) -> Result<Value, ConversionError>
where
    Message: TryFrom<i32>,
    Value: TryFrom<Message, Error = ConversionError>,
{
    let message = Message::try_from(number).map_err(|_| {
        ConversionError::new(field, format!("{number} is not among the known values"))
    })?;
    Value::try_from(message).map_err(|error| error.within(field))
}

fn at_most(field: &str, count: usize, max: usize, of_what: &str) -> Result<(), ConversionError> {
    if count <= max {
        return Ok(());
    }
    Err(ConversionError::new(
        field,
        format!("has {count} {of_what}, more than {max}"),
    ))
}

/// For the zero of every enumeration. Its path is filled in by whoever knows the field.
fn unspecified() -> ConversionError {
    ConversionError::new("", "is unspecified")
}

/// `From` and `TryFrom` between two enumerations without payload.
macro_rules! enumeration {
    ($message:ty, $value:ty, { $($variant:ident),+ $(,)? }) => {
        impl From<$value> for $message {
            fn from(value: $value) -> Self {
                match value {
                    $(<$value>::$variant => Self::$variant,)+
                }
            }
        }

        impl TryFrom<$message> for $value {
            type Error = $crate::ConversionError;

            fn try_from(message: $message) -> Result<Self, Self::Error> {
                match message {
                    <$message>::Unspecified => Err($crate::convert::unspecified()),
                    $(<$message>::$variant => Ok(Self::$variant),)+
                }
            }
        }
    };
}
use enumeration;

#[cfg(test)]
mod tests;
