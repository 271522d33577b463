"""Where captioned pictures come from: folders, tables, archives, and the bundled set."""
