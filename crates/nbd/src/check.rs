// SPDX-License-Identifier: Apache-2.0
//! Whether a request may be acted on. A pure function of the request and of what is true of the device and the connection now.
//!
//! The answers are those of the specification: beyond the end is `ENOSPC` for what writes and `EINVAL` for all else, writing to what is
//! read-only is `EPERM`, and a flag that does not belong to the command, an unaligned range or an unknown command is `EINVAL`. The size is
//! the one of this moment, so a device that grew can be used at once. A request of length 0 does nothing, well (but `BLOCK_STATUS`,
//! which has to answer with at least one extent).

use crate::wire::{self, Command, Request};
use varve_serve::Refusal;
use varve_types::ErrorKind;

/// What a request is checked against.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    /// Size of the device in bytes, now.
    pub(crate) size: u64,
    /// Whether the device takes no writes.
    pub(crate) read_only: bool,
    /// Whether structured replies were agreed.
    pub(crate) structured: bool,
    /// Whether `base:allocation` was chosen.
    pub(crate) block_status: bool,
}

const fn refuse(kind: ErrorKind, text: &'static str) -> Result<(), Refusal> {
    Err(Refusal { kind, text })
}

/// Whether `request` may be acted on.
#[inline]
pub(crate) fn check(request: &Request, terms: Terms) -> Result<(), Refusal> {
    let allowed = match request.command {
        Command::Read if terms.structured => wire::CMD_FLAG_FUA | wire::CMD_FLAG_DF,
        Command::WriteZeroes => wire::CMD_FLAG_FUA | wire::CMD_FLAG_NO_HOLE | wire::CMD_FLAG_FAST_ZERO,
        Command::BlockStatus => wire::CMD_FLAG_FUA | wire::CMD_FLAG_REQ_ONE,
        Command::Disconnect => return Ok(()),
        Command::Unknown(_) => return refuse(ErrorKind::Invalid, "the command is not known"),
        _ => wire::CMD_FLAG_FUA,
    };
    if request.flags & !allowed != 0 {
        return refuse(ErrorKind::Invalid, "a flag does not belong to the command");
    }
    if request.command == Command::Flush {
        return if request.offset == 0 && request.length == 0 {
            Ok(())
        } else {
            refuse(ErrorKind::Invalid, "a flush has no offset and no length")
        };
    }
    let writes = matches!(request.command, Command::Write | Command::Trim | Command::WriteZeroes);
    if writes && terms.read_only {
        return refuse(ErrorKind::Conflict, "the export is read-only");
    }
    if matches!(request.command, Command::Read | Command::Write) && request.length > wire::MAX_BLOCK {
        return refuse(ErrorKind::Invalid, "more than 32 MiB in one request");
    }
    if !request.offset.is_multiple_of(u64::from(wire::MIN_BLOCK)) || !request.length.is_multiple_of(wire::MIN_BLOCK) {
        return refuse(ErrorKind::Invalid, "offset and length have to be multiples of 512");
    }
    if request.offset.checked_add(u64::from(request.length)).is_none_or(|end| end > terms.size) {
        let full = matches!(request.command, Command::Write | Command::WriteZeroes);
        return refuse(if full { ErrorKind::NoSpace } else { ErrorKind::Invalid }, "beyond the end of the export");
    }
    if request.command == Command::BlockStatus {
        if !terms.block_status {
            return refuse(ErrorKind::Invalid, "no metadata context was chosen");
        }
        if request.length == 0 {
            return refuse(ErrorKind::Invalid, "the status of nothing");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERMS: Terms = Terms { size: 1 << 30, read_only: false, structured: true, block_status: true };
    const EVERY: [Command; 7] = [
        Command::Read,
        Command::Write,
        Command::Flush,
        Command::Trim,
        Command::Cache,
        Command::WriteZeroes,
        Command::BlockStatus,
    ];

    fn error(command: Command, flags: u16, offset: u64, length: u32, terms: Terms) -> u32 {
        check(&Request { flags, command, cookie: 1, offset, length }, terms).map_or_else(|r| r.kind.nbd(), |()| 0)
    }

    #[test]
    fn a_range_has_to_lie_in_the_device_and_on_sectors() {
        for command in EVERY.into_iter().filter(|c| *c != Command::Flush) {
            let beyond = if matches!(command, Command::Write | Command::WriteZeroes) { 28 } else { 22 };
            for (offset, length, expected) in [
                (0, 512, 0),
                ((1 << 30) - 512, 512, 0),
                ((1 << 30) - 512, 1024, beyond),
                (1 << 30, 512, beyond),
                (u64::MAX - 511, 512, beyond),
                (1, 512, 22),
                (512, 511, 22),
            ] {
                assert_eq!(error(command, 0, offset, length, TERMS), expected, "{command:?} {offset} {length}");
            }
            let nothing = if command == Command::BlockStatus { 22 } else { 0 };
            assert_eq!(error(command, 0, 512, 0, TERMS), nothing, "{command:?}");
        }
        let small = Terms { size: 512, ..TERMS };
        assert_eq!(error(Command::Read, 0, 512, 512, small), 22);
    }

    #[test]
    fn only_what_is_carried_is_bounded() {
        let big = Terms { size: 1 << 40, ..TERMS };
        assert_eq!(error(Command::Read, 0, 0, 32 << 20, big), 0);
        assert_eq!(error(Command::Read, 0, 0, (32 << 20) + 512, big), 22);
        assert_eq!(error(Command::Write, 0, 0, (32 << 20) + 512, big), 22);
        for command in [Command::Trim, Command::WriteZeroes, Command::Cache, Command::BlockStatus] {
            assert_eq!(error(command, 0, 0, u32::MAX - 511, big), 0, "{command:?}");
        }
    }

    #[test]
    fn flags_belong_to_commands() {
        use wire::{CMD_FLAG_DF, CMD_FLAG_FAST_ZERO, CMD_FLAG_FUA, CMD_FLAG_NO_HOLE, CMD_FLAG_REQ_ONE};
        for command in EVERY {
            let length = if command == Command::Flush { 0 } else { 512 };
            assert_eq!(error(command, CMD_FLAG_FUA, 0, length, TERMS), 0);
            for (flag, of) in [
                (CMD_FLAG_DF, Command::Read),
                (CMD_FLAG_NO_HOLE, Command::WriteZeroes),
                (CMD_FLAG_FAST_ZERO, Command::WriteZeroes),
                (CMD_FLAG_REQ_ONE, Command::BlockStatus),
                (1 << 5, Command::Unknown(0)),
                (1 << 15, Command::Unknown(0)),
            ] {
                let expected = if command == of { 0 } else { 22 };
                assert_eq!(error(command, flag, 0, length, TERMS), expected, "{command:?} {flag:#x}");
            }
        }
        assert_eq!(error(Command::Read, CMD_FLAG_DF, 0, 512, Terms { structured: false, ..TERMS }), 22);
    }

    #[test]
    fn what_was_not_agreed_or_is_not_known_is_refused() {
        let read_only = Terms { read_only: true, ..TERMS };
        for command in EVERY {
            let length = if command == Command::Flush { 0 } else { 512 };
            let writes = matches!(command, Command::Write | Command::Trim | Command::WriteZeroes);
            assert_eq!(error(command, 0, 0, length, read_only), if writes { 1 } else { 0 }, "{command:?}");
        }
        assert_eq!(error(Command::BlockStatus, 0, 0, 512, Terms { block_status: false, ..TERMS }), 22);
        assert_eq!(error(Command::Flush, 0, 512, 0, TERMS), 22);
        assert_eq!(error(Command::Unknown(8), 0, 0, 512, TERMS), 22);
        assert_eq!(error(Command::Disconnect, 0xffff, 7, 7, TERMS), 0);
    }
}
