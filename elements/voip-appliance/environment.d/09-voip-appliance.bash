# Before the stock elements set their own defaults (10-...).
export DIB_RELEASE=${DIB_RELEASE:-bookworm}
export DIB_APT_MINIMAL_CREATE_INTERFACES=${DIB_APT_MINIMAL_CREATE_INTERFACES:-0}
export DIB_GRUB_TIMEOUT=${DIB_GRUB_TIMEOUT:-0}
# quiet keeps systemd's status lines off the console, loglevel=5 lets the kernel's warnings and errors through
export DIB_BOOTLOADER_DEFAULT_CMDLINE=${DIB_BOOTLOADER_DEFAULT_CMDLINE:-"quiet loglevel=5 nomodeset"}
export DIB_VOIP_KERNEL_PACKAGE=${DIB_VOIP_KERNEL_PACKAGE:-linux-image-cloud-$ARCH}
export DIB_VOIP_EFI=${DIB_VOIP_EFI:-}
export DIB_VOIP_KERNEL_HOLD=${DIB_VOIP_KERNEL_HOLD:-1}
export DIB_VOIP_DATASOURCES=${DIB_VOIP_DATASOURCES:-ConfigDrive, OpenStack, NoCloud}
export DIB_VOIP_IMAGE_MIRROR=${DIB_VOIP_IMAGE_MIRROR:-}
export DIB_VOIP_IMAGE_SECURITY_MIRROR=${DIB_VOIP_IMAGE_SECURITY_MIRROR:-}
