// SPDX-License-Identifier: Apache-2.0
//! The numbers of error kinds on the wire. A number is never used for another kind.

use varve_types::ErrorKind;

const TABLE: [(u8, ErrorKind); 9] = [
    (1, ErrorKind::Invalid),
    (2, ErrorKind::NotFound),
    (3, ErrorKind::Conflict),
    (4, ErrorKind::Fenced),
    (5, ErrorKind::Unavailable),
    (6, ErrorKind::Busy),
    (7, ErrorKind::Corrupt),
    (8, ErrorKind::NoSpace),
    (9, ErrorKind::Internal),
];

/// The number of a kind; never 0.
pub(crate) fn number(kind: ErrorKind) -> u8 {
    TABLE.iter().find(|(_, known)| *known == kind).map_or(9, |(number, _)| *number)
}

/// The kind of a number. One that a newer version has added is a defect of the other side, as far as this one can tell.
pub(crate) fn kind(number: u8) -> ErrorKind {
    TABLE.iter().find(|(known, _)| *known == number).map_or(ErrorKind::Internal, |(_, kind)| *kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_number_of_its_own_for_ever() {
        for of_types in varve_types::ALL_KINDS {
            assert_eq!(kind(number(of_types)), of_types);
        }
        assert_eq!(TABLE.map(|(number, _)| number), [1, 2, 3, 4, 5, 6, 7, 8, 9]);
        assert_eq!(kind(200), ErrorKind::Internal);
    }
}
