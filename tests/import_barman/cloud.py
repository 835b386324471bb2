"""barman-cloud-backup, whose cloud is a directory of this host: cloud.py DIRECTORY OPTION..."""
import os
import shutil
import sys

import barman.clients.cloud_backup as cloud_backup
from barman.cloud import CloudInterface


class Directory(CloudInterface):
    """Objects are files. Only what an upload needs."""

    MAX_CHUNKS_PER_FILE = 10000
    MIN_CHUNK_SIZE = 5 << 20
    MAX_ARCHIVE_SIZE = 1 << 40
    MAX_DELETE_BATCH_SIZE = 1000

    def __init__(self, place):
        super().__init__(url="s3://bucket", jobs=1)
        self.place = place
        self.path = ""
        self.bucket_exists = True

    def _file(self, key):
        path = os.path.join(self.place, key)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        return path

    def _reinit_session(self):
        pass

    def test_connectivity(self):
        return True

    def _check_bucket_existence(self):
        return True

    def upload_fileobj(self, fileobj, key, override_tags=None, fail_if_exists=False):
        with open(self._file(key), "wb") as file:
            shutil.copyfileobj(fileobj, file)

    def create_multipart_upload(self, key):
        return {"UploadId": key}

    def _upload_part(self, upload_metadata, key, body, part_number):
        with open("%s.part%05d" % (self._file(key), part_number), "wb") as file:
            shutil.copyfileobj(body, file)
        return {"PartNumber": part_number}

    def _complete_multipart_upload(self, upload_metadata, key, parts_metadata):
        with open(self._file(key), "wb") as whole:
            for part in sorted(part["PartNumber"] for part in parts_metadata):
                name = "%s.part%05d" % (self._file(key), part)
                with open(name, "rb") as file:
                    shutil.copyfileobj(file, whole)
                os.unlink(name)


def _missing(self, *args, **options):
    raise NotImplementedError


for name in list(Directory.__abstractmethods__):
    setattr(Directory, name, _missing)
Directory.__abstractmethods__ = frozenset()

if __name__ == "__main__":
    place = sys.argv[1]
    cloud_backup.get_cloud_interface = lambda config: Directory(place)
    sys.exit(cloud_backup.main(sys.argv[2:]))
