// SPDX-License-Identifier: Apache-2.0
//! Enums that are lists for people too: each variant has a name and a sentence that says what it is.

/// Makes such an enum: `/// what one is` `Type:` and then, for each variant, its sentence, `Variant = "name-of-it",`.
macro_rules! catalogue {
    ($(#[doc = $one:literal])+ $type:ident: $($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        $(#[doc = $one])+
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $type {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl $type {
            /// Every one.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// Its name, in small letters and dashes.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }

            /// What it is, in a sentence.
            #[must_use]
            pub fn about(self) -> &'static str {
                match self {
                    $(Self::$variant => concat!($($doc),+).trim(),)+
                }
            }
        }
    };
}

pub(crate) use catalogue;
