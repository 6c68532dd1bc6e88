# Installs Debian's packages into a tar archive.
#
# Index and packages are there already: the lab's apt has fetched and verified them.
step "installing Debian $SUITE"
# shellcheck disable=SC2016 # "$1" is for mmdebstrap's shell.
mmdebstrap --verbose --mode=root --architectures=arm64 --variant=apt --include="$PACKAGES" \
  --skip=check/qemu,check/signed-by,update,output/mknod,output/dev,download/empty,essential/unlink,cleanup/apt/cache \
  --setup-hook='mkdir -p "$1/var/lib/apt/lists" "$1/var/cache/apt/archives"' \
  --setup-hook='cp -r "$LISTS/." "$1/var/lib/apt/lists/"' \
  --setup-hook='mount --bind "$ARCHIVES" "$1/var/cache/apt/archives"' \
  --customize-hook='umount "$1/var/cache/apt/archives"' \
  --aptopt='APT::Install-Recommends "false"' --aptopt='APT::Sandbox::User ""' \
  --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/info/*' \
  --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
  --dpkgopt='path-include=/usr/share/doc/*/copyright' \
  --format=tar "$SUITE" "$OUTPUT" "deb [signed-by=$KEYRING] $MIRROR $SUITE main"
