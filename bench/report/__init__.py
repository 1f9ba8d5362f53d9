"""The figures for people and programs: text, Markdown, JSON, SVG."""
