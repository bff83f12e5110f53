# Short names for `python3 dev.py …`; both make and use the virtual environment .venv.
PYTHON ?= python3

.PHONY: install check test serve
install:
	$(PYTHON) dev.py install
check:
	$(PYTHON) dev.py check
test:
	$(PYTHON) dev.py test
serve:
	$(PYTHON) dev.py serve
