"""The reference pages say what the code says."""

from tests.rules.reference import DOCS, metrics_page, settings_page


def test_every_setting_is_documented_as_it_is() -> None:
    assert (DOCS / "settings.md").read_text(encoding="utf-8") == settings_page()


def test_every_metric_is_documented_as_it_is() -> None:
    assert (DOCS / "metrics.md").read_text(encoding="utf-8") == metrics_page()
