"""The bundled data: short English texts of four domains, positive or negative (see NOTICE.md)."""
