"""Opening Parquet files so that nothing in them is run.

In: a file. Out: pyarrow's reader of it. The only place that opens Parquet: pyarrow gives the values of an extension
type to the Python class that is registered under the type's name, and Ray Data registers one that unpickles them. Ray's
own reader refuses such columns; a file that is read with pyarrow would run code in any process that uses Ray Data.
Refuses to know: Ray, tables, what columns mean.
"""

from collections.abc import Container

import pyarrow as pa
import pyarrow.parquet as pq

from ka2l_ray.config import ConfigError
from ka2l_ray.dataflow.storage import Folder

EXTENSION = b"ARROW:extension:name"
"""In the metadata of a field whose type no class is registered for in this process; in another one it may be."""


def open_parquet(file: Folder, columns: Container[str] | None = None) -> pq.ParquetFile:
    """The reader of a file, of which only `columns` (None: any) will be read.

    Raises `ConfigError` where the type of one of them is defined in Python, `FileNotFoundError`, and pyarrow's errors
    for a file that is not Parquet.
    """
    opened = pq.ParquetFile(file.path, filesystem=file.filesystem)
    for column in opened.schema_arrow:
        if (columns is None or column.name in columns) and (name := python_type(column)):
            opened.close()
            raise ConfigError(
                f"{file.uri}: column {column.name!r} has the type {name!r}, whose values may be pickles, so it is not "
                "read; save it as text or numbers"
            )
    return opened


def python_type(column: pa.Field) -> str | None:
    """Name of the extension type of a column, or of one nested in it, that pyarrow itself does not define; None where
    there is none."""
    kind = column.type
    if isinstance(kind, pa.ExtensionType):
        return kind.extension_name
    if name := (column.metadata or {}).get(EXTENSION):
        return name.decode(errors="replace")
    if isinstance(kind, pa.BaseExtensionType):
        inside = [pa.field("", kind.storage_type)]
    elif pa.types.is_dictionary(kind):
        inside = [pa.field("", kind.value_type)]
    else:
        inside = [kind.field(n) for n in range(kind.num_fields)]
    return next((name for field in inside if (name := python_type(field))), None)
