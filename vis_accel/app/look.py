"""How the page looks: theme, style sheet, and the few scripts that need the browser (copying, the link)."""

from __future__ import annotations

from typing import Any

__all__ = ["COPY", "COPY_LINK", "CSS", "theme"]

CSS = """
.gradio-container { max-width: 1240px !important; margin: 0 auto !important; }
.gradio-container > main, .gradio-container .fillable, .gradio-container .wrap { width: 100% !important; max-width: 100%; min-width: 0; }
.va-card { background: var(--background-fill-primary); border: 1px solid var(--border-color-primary); border-radius: 14px;
  padding: 18px !important; }
.va-card .form { background: transparent; border: 0; box-shadow: none; gap: 14px; overflow: visible; border-radius: 0; }
.va-card .gr-group, .va-card .styler { background: transparent; border: 0; border-radius: 0; overflow: visible; }
.va-seed { align-items: flex-end; }
.va-go button { flex: 1 1 0; max-width: 190px; }
.va-go { align-items: center; flex-wrap: nowrap !important; }
.gradio-container .contain, .gradio-container .tabs, .gradio-container .tabitem { width: 100%; }
.va-switch:has(input:disabled) label > span { opacity: .55; }
.va-switch:has(input:disabled) label, .va-switch input:disabled { cursor: not-allowed; }
button[role=tab][aria-selected=true] { color: var(--va-strong) !important; }
:root { --va-strong: #0f766e; }
.dark { --va-strong: #2dd4bf; }
.va-head { padding: 6px 0 2px; }
.va-head h1 { font-size: 1.5rem; font-weight: 650; margin: 0; letter-spacing: -0.01em; }
.va-head p { margin: 2px 0 0; color: var(--body-text-color-subdued); max-width: 68ch; }
.va-lead { color: var(--body-text-color-subdued); margin: 0; max-width: 72ch; }
.va-tiles h3 { font-size: .95rem; font-weight: 600; margin: 0 0 8px; }
.va-tiles > div { display: grid; grid-template-columns: repeat(auto-fill, minmax(128px, 1fr)); gap: 12px; }
.va-tiles.va-large > div { grid-template-columns: minmax(0, 384px); }
.va-tiles figure { margin: 0; }
.va-tiles img { width: 100%; aspect-ratio: 1; object-fit: contain; image-rendering: pixelated; border-radius: 8px; display: block;
  background: var(--background-fill-secondary); }
.va-blank { width: 100%; aspect-ratio: 1; border-radius: 8px; background: var(--background-fill-secondary);
  border: 1px dashed var(--border-color-primary); }
.va-tiles figcaption { font-size: .8rem; color: var(--body-text-color-subdued); margin-top: 4px; overflow-wrap: anywhere; }
.va-tiles + .va-tiles { margin-top: 18px; }
.va-status { display: flex; align-items: center; gap: 12px; min-height: 28px; font-size: .92rem; }
.va-status progress { flex: 0 1 220px; height: 8px; appearance: none; border: 0; border-radius: 4px; overflow: hidden;
  background: var(--border-color-primary); }
.va-status progress::-webkit-progress-bar { background: var(--border-color-primary); }
.va-status progress::-webkit-progress-value { background: var(--color-accent); }
.va-status progress::-moz-progress-bar { background: var(--color-accent); }
.va-status progress:indeterminate { background: linear-gradient(90deg, var(--border-color-primary) 35%, var(--color-accent) 50%,
  var(--border-color-primary) 65%) 0 / 300% 100%; animation: va-wait 1.6s linear infinite; }
.va-status progress:indeterminate::-webkit-progress-bar { background: transparent; }
@keyframes va-wait { from { background-position: 100% 0; } to { background-position: 0 0; } }
.va-numbers { display: grid; grid-template-columns: repeat(auto-fit, minmax(112px, 1fr)); gap: 10px; }
.va-numbers.va-many { grid-template-columns: repeat(3, minmax(0, 1fr)); }
.va-numbers.va-many strong { font-size: 1.2rem; }
.va-numbers.va-odd .va-main { grid-column: span 2; }
.va-numbers div { background: var(--background-fill-secondary); border-radius: 10px; padding: 10px 14px; }
.va-numbers strong { display: block; font-size: 1.4rem; font-weight: 650; line-height: 1.25; font-variant-numeric: tabular-nums; }
.va-numbers span { font-size: .82rem; color: var(--body-text-color-subdued); }
.va-numbers .va-main { background: var(--color-accent-soft); }
.va-note { font-size: .88rem; color: var(--body-text-color-subdued); margin: 0; }
.va-note.va-bad { color: var(--error-text-color, #b42318); }
.dark .va-note.va-bad { color: #fda29b; }
.va-table { width: 100%; border-collapse: collapse; font-size: .9rem; }
.va-table th, .va-table td { text-align: left; padding: 7px 12px 7px 0 !important; border: 0 !important;
  border-bottom: 1px solid var(--border-color-primary) !important;
  overflow-wrap: anywhere; }
.va-table td.va-n, .va-table th.va-n { text-align: right; font-variant-numeric: tabular-nums; }
.va-table, .va-table tr, .va-table thead, .va-table tbody { border: 0 !important; }
.va-table .va-n { white-space: nowrap; overflow-wrap: normal; }
.va-table td:first-child { min-width: 9em; }
.va-scroll { overflow-x: auto; width: 0; min-width: 100%; }  /* its rows do not widen the page */
.va-more { font-size: .88rem; color: var(--body-text-color-subdued); }
.va-more summary { cursor: pointer; }
.va-recipe textarea, .va-recipe input { font-family: var(--font-mono); }
.va-shelf { display: grid; grid-template-columns: repeat(auto-fill, minmax(52px, 1fr)); gap: 8px; }
.va-shelf button { padding: 0; border: 2px solid transparent; border-radius: 10px; cursor: pointer; background: none; line-height: 0; }
.va-shelf button:hover, .va-shelf button:focus-visible { border-color: var(--color-accent); outline: none; }
.va-shelf img { width: 100%; image-rendering: pixelated; border-radius: 8px; }
.va-drop img { image-rendering: pixelated; width: 100%; height: 100%; object-fit: contain; }
.va-pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(230px, 1fr)); gap: 22px; }
.va-bars ol, .va-exits ul { list-style: none; margin: 0; padding: 0; }
.va-bars h3, .va-exits h3 { font-size: .95rem; font-weight: 600; margin: 0 0 6px; }
.va-exits { margin-top: 16px; font-size: .92rem; }
.va-bars li { display: grid; grid-template-columns: 6.5em 1fr 4em; gap: 8px; align-items: center; font-size: .9rem; padding: 2px 0; }
.va-bars li span:first-child { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.va-n { text-align: right; font-variant-numeric: tabular-nums; }
.va-bars meter { width: 100%; height: 12px; background: var(--background-fill-secondary); border: 0; border-radius: 6px; }
.va-bars meter::-webkit-meter-bar { background: var(--background-fill-secondary); border: 0; border-radius: 6px; height: 10px; }
.va-bars meter::-webkit-meter-optimum-value { background: var(--color-accent); border-radius: 6px; }
.va-bars meter::-moz-meter-bar { background: var(--color-accent); border-radius: 6px; }
.va-tiles + .va-note { margin-top: 10px; }
.va-plot svg { max-height: 460px; }
.va-plot svg { width: 100%; height: auto; display: block; font-family: var(--font); }
.va-plot text { font-size: 13px; fill: var(--body-text-color); }
.va-plot text.va-axis { fill: var(--body-text-color-subdued); }
.va-plot .va-grid { stroke: var(--border-color-primary); stroke-width: 1; }
.va-plot .va-front { fill: none; stroke: var(--color-accent); stroke-width: 2; opacity: .5; }
.va-plot .va-bar { stroke: var(--body-text-color-subdued); stroke-width: 1.5; }
.va-plot circle { fill: var(--body-text-color-subdued); }
.va-plot .va-best circle { fill: var(--color-accent); }
.va-plot .va-best .va-bar { stroke: var(--color-accent); }
.va-plot circle.va-hit { fill: transparent; }
.va-point[role=button] { cursor: pointer; }
.va-point:focus-visible { outline: none; }
.va-point:focus-visible .va-hit, .va-point[role=button]:hover .va-hit { fill: var(--color-accent); opacity: .2; }
.va-link { color: var(--link-text-color); text-decoration: underline; text-underline-offset: 2px; background: none; border: 0; padding: 0;
  cursor: pointer; text-align: left; font: inherit; font-family: var(--font-mono); font-size: .86rem; }
.va-table .va-best td { font-weight: 600; }
@media (max-width: 640px) {
  .va-tiles > div { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .va-head h1 { font-size: 1.25rem; }
  button[role=tab] { padding: 0 10px !important; }
  .va-plot text { font-size: 21px; }
  .va-numbers.va-many { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .va-status progress { flex-basis: 96px; }
  footer .divider { display: none !important; }
  .va-card { padding: 14px !important; border-radius: 12px; }
}
@media (prefers-reduced-motion: reduce) { * { animation: none !important; transition: none !important; } }
"""

_TO_CLIPBOARD = """
(text) => {
  const area = document.createElement('textarea');
  area.value = text; area.style.position = 'fixed'; area.style.opacity = '0';
  const old = () => { document.body.appendChild(area); area.select(); document.execCommand('copy'); area.remove(); };
  if (navigator.clipboard && window.isSecureContext) navigator.clipboard.writeText(text).catch(old); else old();
  return text;
}
"""
COPY = _TO_CLIPBOARD
COPY_LINK = _TO_CLIPBOARD.replace("area.value = text;", "text = location.origin + location.pathname + text; area.value = text;", 1)


def theme() -> Any:
    """Gradio's plain theme in one calm colour, without boxes, with the fonts of the visitor's own system: none is fetched."""
    import gradio as gr

    return gr.themes.Default(
        primary_hue="teal", secondary_hue="teal", neutral_hue="slate", spacing_size="md", radius_size="lg",
        font=["system-ui", "-apple-system", "Segoe UI", "sans-serif"], font_mono=["ui-monospace", "Menlo", "Consolas", "monospace"],
    ).set(
        body_background_fill="*neutral_50", body_background_fill_dark="*neutral_950",
        block_border_width="0px", block_border_width_dark="0px", block_background_fill="transparent",
        block_background_fill_dark="transparent",
        block_shadow="none", block_padding="0px", block_label_background_fill="transparent", block_label_background_fill_dark="transparent",
        block_title_text_weight="600", block_title_text_size="*text_md", block_info_text_size="*text_sm", layout_gap="14px",
        body_text_color_subdued="*neutral_600", body_text_color_subdued_dark="*neutral_400", block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_400", block_title_text_color="*neutral_800", block_title_text_color_dark="*neutral_100",
        panel_border_width="0px", input_background_fill="white", input_background_fill_dark="*neutral_900",
        button_primary_background_fill="*primary_700", button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700", button_primary_background_fill_hover_dark="*primary_600",
        button_primary_text_color="white", slider_color="*primary_600", slider_color_dark="*primary_500",
    )  # fmt: skip
