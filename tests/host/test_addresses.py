import pytest

from kvexp.host.addresses import mask_address, mask_secrets


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("mysql+pymysql://me:p:w@db:5432/x", "mysql+pymysql://me:***@db:5432/x"),
        ("http://maria:s@cret@host:5000/x", "http://maria:***@host:5000/x"),
        ("postgresql://maria:se/c?r#t@host/x", "postgresql://maria:***@host/x"),
        ("https://glpat-7@host/x", "https://***@host/x"),
        ("https://glpat-7:@host", "https://***@host"),
        ("https://:se cret@host", "https://***@host"),
        (
            "https://host?token=a=b&timeout=9;api_key=c#top",
            "https://host?token=***&timeout=9;api_key=***#top",
        ),
        ("postgresql:///runs?user=jo&PassWord=x%26y", "postgresql:///runs?user=jo&PassWord=***"),
        ("mssql+pyodbc:///?odbc_connect=DRIVER={ODBC 18};PWD=x", "mssql+pyodbc:///?odbc_connect=***;PWD=***"),
        ("http://[::1]:5000?%74oken=x", "http://[::1]:5000?%74oken=***"),
        ("http://[broken?token=x", "http://[broken?token=***"),
        ("https:/glpat-7@host/?token=x", "https:/***@host/?token=***"),
    ],
)
def test_the_secrets_of_an_address_are_masked(typed, shown):
    assert mask_address(typed) == shown
    assert mask_address(shown) == shown


@pytest.mark.parametrize(
    "typed",
    [
        "sqlite:////data/runs.db?timeout=5&mode=rw",
        "http://host:5000/#/experiments/1/runs?viewStateShareKey=last",
        "https://host/@maria",
        "https://${oc.env:TOKEN}@host?token=${oc.env:TOKEN}",
        "databricks",
    ],
)
def test_an_address_without_a_secret_stays(typed):
    assert mask_address(typed) == mask_secrets(typed) == typed


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("- http://maria:s@cret@host\n- b", "- http://maria:***@host\n- b"),
        ("a: http://host:5000\nb: a@b\n", "a: http://host:5000\nb: a@b\n"),
        ("uri: 'http://host?token=x'\nc: 1\n", "uri: 'http://host?token=***'\nc: 1\n"),
        ("no file https:/glpat-7@host/x", "no file https:/***@host/x"),
        ("copied to host:/data/maria@lab/x", "copied to host:/data/maria@lab/x"),
        ("'it''s http://a''b@host' is wrong", "'it''s http://***@host' is wrong"),
    ],
)
def test_the_secrets_of_every_address_in_a_text_are_masked_and_nothing_else(text, shown):
    assert mask_secrets(text) == shown


def test_known_secrets_are_masked_wherever_they_stand():
    said = "no answer to /?token=a%2Fb/api, a/b was not taken, nor Bearer tok-9"
    masked = "no answer to /?token=***/api, *** was not taken, nor Bearer ***"
    assert mask_secrets(said, "http://host?token=a%2Fb", "tok-9", "") == masked
