// SPDX-License-Identifier: Apache-2.0
//! The tables, magics, versions and limits in `docs/formats.md` are those of the golden files and of the code.
//!
//! A table `| TITLE | bytes | |` with rows `| offset | bytes | field |` is compared, row by row, with the fields that a golden file was taken apart
//! with: offsets without gaps, lengths, names, the magic and the version.

use crate::document::text;
use crate::dump::{Field, Form, apart, field};
use crate::{Golden, all, bundle, journal, page, segment};
use varve_format::crc::Domain;
use varve_format::{
    Lineage, NodePointer, Pointer, bundle as bundles, chunk, journal as records, page as pages, segment as segments,
    table,
};
use varve_types::{Ordinal, RootNumber};

/// The cells of the rows of the table that begins with this line.
fn rows(document: &str, head: &str) -> Vec<Vec<String>> {
    let mut lines = document.lines().skip_while(|line| *line != head);
    assert!(lines.next().is_some(), "docs/formats.md has no table {head}");
    let cells = |line: &str| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
    lines.skip(1).take_while(|line| line.starts_with('|')).map(cells).collect()
}

fn golden(file: &str) -> Golden {
    all().into_iter().find(|golden| golden.file == file).unwrap()
}

/// Compares a table with the first fields of a golden file.
fn compare(title: &str, file: &str, fields: &[Field], len: usize) {
    let document = text();
    let rows = rows(&document, &format!("| {title} | bytes | |"));
    let bytes = golden(file).bytes();
    let found = apart(&bytes[..len], fields);
    let fixed = rows.iter().filter(|row| !row[1].is_empty()).collect::<Vec<_>>();
    assert_eq!(fixed.len(), found.len(), "{title}: rows of the document, fields of {file}");
    for (row, found) in fixed.into_iter().zip(&found) {
        let place = (row[0].replace(',', "").parse::<usize>(), row[1].replace(',', "").parse::<usize>());
        assert_eq!(place, (Ok(found.at), Ok(found.len)), "{title}: {row:?} and {found:?}");
        let named = match found.name.as_str() {
            "magic" => row[2] == format!("`{}`", found.value),
            "version" => row[2] == format!("version, {}", found.value),
            name => row[2].starts_with(name),
        };
        assert!(named, "{title}: {row:?} and {found:?}");
    }
}

#[test]
fn tables_of_fixed_layouts_are_what_the_bytes_are() {
    compare("superblock", "journal-superblock", &journal::superblock_fields(), records::SUPERBLOCK as usize);
    for file in ["journal-write", "journal-hole", "journal-snapshot", "journal-size", "journal-pad"] {
        compare("record", file, &journal::record_fields(), records::FIXED_HEADER);
    }
    for file in ["segment-raw", "segment-lz4", "segment-zstd", "segment-marks"] {
        compare("segment header", file, &segment::header_fields(), segments::SEGMENT_HEADER);
    }
    for file in ["bundle-raw", "bundle-lz4"] {
        compare("bundle header", file, &bundle::header_fields(), bundles::BUNDLE_HEADER);
    }
    for file in ["page-table", "page-map"] {
        compare("page header", file, &page::header_fields(), pages::PAGE_HEADER);
    }
    let owner = golden("owner");
    compare("owner record", "owner", &(owner.fields)(), owner.bytes().len());
    let block = [
        field("bound checksum", Form::Sum),
        field("zero", Form::Zero(4)),
        field("LBA", Form::U64),
        field("the block's data", Form::Bytes(4096)),
    ];
    let bytes = golden("segment-raw").bytes();
    let found = apart(&bytes[bytes.len() - chunk::RAW_BLOCK..], &block);
    for (row, found) in rows(&text(), "| raw block | bytes | |").iter().zip(&found) {
        let expected = [found.at.to_string(), found.len.to_string()];
        assert!(row[..2] == expected && row[2].starts_with(&found.name), "{row:?} and {found:?}");
    }
}

#[test]
fn the_parts_of_a_manifest_are_in_order() {
    let text =
        rows(&text(), "| part | fields |").iter().map(|row| format!("{}: {}\n", row[0], row[1])).collect::<String>();
    let mut rest = text.as_str();
    for Field { name, .. } in (golden("manifest-empty").fields)() {
        let name = match name.as_str() {
            "magic" | "version" | "checksum" | "writer" => continue,
            "epoch" => "owner",
            "ancestor 0: index" => "index",
            name => name,
        };
        let at = rest.find(name).unwrap_or_else(|| panic!("{name} is missing, or out of order, in {rest}"));
        rest = &rest[at + name.len()..];
    }
}

#[test]
fn magics_and_versions_are_in_the_document() {
    let text = text();
    for golden in all().into_iter().filter(|golden| golden.version.is_some()) {
        let magic = String::from_utf8(golden.bytes()[..8].to_vec()).unwrap();
        assert!(text.contains(&format!("`{magic}`")), "{magic}");
    }
    for line in String::from_utf8(golden("names").bytes()).unwrap().lines() {
        assert!(text.contains(line), "the name {line} is not among the examples");
    }
}

#[test]
fn bits_of_pointers_are_where_the_document_says() {
    let document = text();
    let bits = |raw: u64, head: &str| {
        let section = document.split(head).nth(1).unwrap();
        let rows = rows(section, "| bits | width | field |");
        let field = |row: &Vec<String>| {
            let (low, high) =
                row[0].split_once('–').map(|(low, high)| (low.parse::<u32>(), high.parse::<u32>())).unwrap();
            let (low, high) = (low.unwrap(), high.unwrap());
            assert_eq!(row[1].parse(), Ok(high - low + 1), "{row:?}");
            (row[2].split([':', ' ']).next().unwrap().to_owned(), raw >> low & (u64::MAX >> (63 - (high - low))))
        };
        rows.iter().map(field).collect::<Vec<_>>()
    };
    let expect =
        |fields: &[(&str, u64)]| fields.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect::<Vec<_>>();
    let pointer = Pointer::data(Lineage(0xab), Ordinal(0x9_8765_4321), 0xcdef);
    let expected = [("lineage", 0xab), ("ordinal", 0x9_8765_4321), ("block", 0xcdef), ("kind", 1)];
    assert_eq!(bits(pointer.raw(), "### Pointer\n"), expect(&expected));
    let node = NodePointer::new(Lineage(0xab), RootNumber(0x1234_5678), 0x2a_bcde);
    let expected = [("lineage", 0xab), ("root", 0x1234_5678), ("part", 0x2a), ("record", 0xbcde), ("kind", 1)];
    assert_eq!(bits(node.raw(), "### Node pointer\n"), expect(&expected));
}

#[test]
fn limits_and_kinds_are_those_of_the_code() {
    let text = text();
    let domains = [
        (Domain::Block, "block of a segment"),
        (Domain::Chunk, "packed chunk"),
        (Domain::Page, "record of a page object"),
        (Domain::Journal, "journal record"),
        (Domain::Share, "packed chunk of a share"),
    ];
    let rows = rows(&text, "| domain | owner | first | second |");
    assert_eq!(rows.len(), domains.len());
    for (row, (domain, name)) in rows.iter().zip(domains) {
        assert_eq!(row[0], format!("{} {name}", domain as u8));
    }
    let said = [
        format!("the ring begins at {}", records::RING_START),
        format!("a multiple of {}", records::ALIGN),
        format!("write: 1–{}", records::MAX_RECORD_BLOCKS),
        format!("at most {},{:03}", pages::MAX_RECORDS / 1000, pages::MAX_RECORDS % 1000),
        format!("blocks a chunk, {}", segments::CHUNK_BLOCKS),
        format!("`data + i × {}`", chunk::RAW_BLOCK),
        format!("of the {} ordinals", table::PAGE_ORDINALS),
        format!("shares, at most {}", bundles::MAX_SHARES),
        "0 raw, 1 LZ4, 2 Zstandard".to_owned(),
        "1 write, 2 hole, 3 mark, 4 pad".to_owned(),
    ];
    for said in said {
        assert!(text.contains(&said), "docs/formats.md should say {said:?}");
    }
}
