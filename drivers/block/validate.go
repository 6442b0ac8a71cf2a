package block

import "fmt"

// Validate says what is wrong with a request to a device, or nil. Queues
// complete a request that fails it with the error it returns, and lower layers
// rely on what it found. A length of zero is valid and does nothing.
//
//   - reads, trims, cache hints past the end, bad alignment, unknown
//     operations and flags: ErrInvalid
//   - writes and zeroes past the end: ErrNoSpace
//   - anything that changes a read-only device: ErrReadOnly
//   - longer than MaxLen: ErrInvalid
func Validate(r *Request, info Info) error {
	if r.Op < OpRead || r.Op > OpCache {
		return fmt.Errorf("%v: %w", r.Op, ErrInvalid)
	}
	if r.Flags&^allowedFlags[r.Op] != 0 {
		return fmt.Errorf("%v with flags %#x: %w", r.Op, uint8(r.Flags), ErrInvalid)
	}
	if r.Op == OpFlush {
		return nil
	}
	if info.ReadOnly && r.Op != OpRead && r.Op != OpCache {
		return ErrReadOnly
	}
	if r.Off < 0 || r.Len < 0 || (r.Off|r.Len)%SectorSize != 0 || r.Len > info.MaxLen ||
		(r.Op <= OpWrite && r.Len != int64(len(r.Buf))) {
		return fmt.Errorf("%v of %d bytes at %d: %w", r.Op, r.Len, r.Off, ErrInvalid)
	}
	if r.Off > info.Size || r.Len > info.Size-r.Off {
		if r.Op == OpWrite || r.Op == OpZero {
			return fmt.Errorf("%v of %d bytes at %d, device of %d bytes: %w", r.Op, r.Len, r.Off, info.Size, ErrNoSpace)
		}
		return fmt.Errorf("%v of %d bytes at %d, device of %d bytes: %w", r.Op, r.Len, r.Off, info.Size, ErrInvalid)
	}
	return nil
}

var allowedFlags = [OpCache + 1]Flags{
	OpRead:  FUA, // NBD allows the flag everywhere; it means nothing here
	OpWrite: FUA,
	OpFlush: FUA,
	OpTrim:  FUA,
	OpZero:  FUA | NoHole | FastZero,
	OpCache: FUA,
}

// CutInwards returns the largest range of whole grains inside [off, off+n), as
// TRIM frees it; its length is 0 when there is none. The last, partial grain
// of a device counts as whole.
func CutInwards(off, n, grain, size int64) (int64, int64) {
	first := (off + grain - 1) / grain * grain
	end := off + n
	if end != size {
		end = end / grain * grain
	}
	if end <= first {
		return first, 0
	}
	return first, end - first
}
