.PHONY: test clean

.venv/installed: pyproject.toml constraints.txt
	python3 -m venv .venv
	.venv/bin/pip install --quiet -c constraints.txt -e '.[dev]'
	touch .venv/installed

test: .venv/installed
	.venv/bin/python -m pytest tests

clean:
	rm -rf .venv build dist
