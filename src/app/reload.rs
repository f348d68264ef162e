//! Reload: a new configuration is built whole, then swapped part by part; a broken one changes nothing.
