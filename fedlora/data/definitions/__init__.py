"""The bundled definitions: common nouns and what they mean, of six classes (see NOTICE.md)."""
