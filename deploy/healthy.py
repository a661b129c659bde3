"""Exit 0 if a health check answers: python deploy/healthy.py URL [CA.crt]"""

import ssl
import sys
from urllib.request import urlopen

url, *authority = sys.argv[1:]
context = ssl.create_default_context(cafile=authority[0]) if authority else None
with urlopen(url, timeout=4, context=context) as answer:
    sys.exit(answer.status >= 300)
