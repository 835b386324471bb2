//! Sets of safeguards, which a test switches off one by one.

/// Defines `Rule`, `ALL` and `Rules` with the safeguards of a model.
macro_rules! rules {
    ($($(#[doc = $text:literal])+ $name:ident,)+) => {
        /// A safeguard of the protocol.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Rule {
            $($(#[doc = $text])+ $name,)+
        }

        /// Each safeguard and what it says.
        pub(crate) const ALL: &[(Rule, &str)] = &[$((Rule::$name, concat!($($text),+)),)+];

        /// The safeguards that are on.
        #[derive(Clone, Copy, Debug)]
        pub(crate) struct Rules(u32);

        impl Rules {
            /// All of them.
            pub(crate) const fn all() -> Self {
                Rules(u32::MAX)
            }

            /// These without `rule`.
            pub(crate) const fn without(self, rule: Rule) -> Self {
                Rules(self.0 & !(1 << rule as u32))
            }

            pub(crate) const fn has(self, rule: Rule) -> bool {
                self.0 & (1 << rule as u32) != 0
            }
        }
    };
}

pub(crate) use rules;
