package backends

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"time"

	"github.com/moraine-storage/moraine/plugins/errdefs"
)

var now = time.Now

var (
	idForm   = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`)
	nameForm = regexp.MustCompile(`^[a-z][a-z0-9-]{0,31}$`)
	nodeForm = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9_.-]{0,126}[A-Za-z0-9])?$`)
)

// nilID is what a forgotten ID looks like; it is never a drive's.
const nilID = "00000000-0000-0000-0000-000000000000"

// Check says whether id can name a drive.
func (id DriveID) Check() error {
	if !idForm.MatchString(string(id)) || id == nilID {
		return fmt.Errorf("drive id %.64q: %w: must be a UUID in lower case", string(id), errdefs.ErrInvalidArgument)
	}
	return nil
}

// Check says whether n can name a node.
func (n NodeID) Check() error {
	if !nodeForm.MatchString(string(n)) {
		return fmt.Errorf("node %.64q: %w: 1 to 128 letters, digits, '_', '.', '-'", string(n), errdefs.ErrInvalidArgument)
	}
	return nil
}

// CheckName says whether name can be a backend's.
func CheckName(name string) error {
	if !nameForm.MatchString(name) {
		return fmt.Errorf("backend name %.64q: %w: must be %s", name, errdefs.ErrInvalidArgument, nameForm)
	}
	return nil
}

// Check says whether the request can be carried out at all.
func (r CreateRequest) Check() error {
	if err := r.ID.Check(); err != nil {
		return fmt.Errorf("create: %w", err)
	}
	if r.Size != 0 {
		if err := CheckSize(r.Size); err != nil {
			return fmt.Errorf("create drive %s: %w", r.ID, err)
		}
	}
	if len(r.Source) > MaxText || len(r.Class) > 64 {
		return fmt.Errorf("create drive %s: %w: source or class too long", r.ID, errdefs.ErrInvalidArgument)
	}
	return nil
}

// CheckSize says whether a drive may have this size in bytes.
func CheckSize(size int64) error {
	if size < MinDriveSize || size > MaxDriveSize {
		return fmt.Errorf("size %d: %w: must be %d to %d bytes", size, errdefs.ErrOutOfRange, int64(MinDriveSize), int64(MaxDriveSize))
	}
	return nil
}

// Check says whether the page can be answered and returns its limit.
func (p Page) Check() (limit int, err error) {
	switch {
	case p.Limit == 0:
		limit = DefaultPage
	case p.Limit < 0 || p.Limit > MaxPage:
		return 0, fmt.Errorf("list drives: limit %d: %w: must be 1 to %d", p.Limit, errdefs.ErrOutOfRange, MaxPage)
	default:
		limit = p.Limit
	}
	if p.After != "" && DriveID(p.After).Check() != nil {
		return 0, fmt.Errorf("list drives: %w: page token is not one of ours", errdefs.ErrInvalidArgument)
	}
	return limit, nil
}

// Paginate answers List from all drives, for backends that hold them in
// memory: it sorts by ID and leaves candidates out. The page token is the last
// ID given out, so that a drive deleted in between loses no other one.
func Paginate(all []Drive, p Page) (Drives, error) {
	limit, err := p.Check()
	if err != nil {
		return Drives{}, err
	}
	page := make([]Drive, 0, min(limit, len(all)))
	sorted := slices.Clone(all)
	slices.SortFunc(sorted, func(a, b Drive) int { return cmp.Compare(a.ID, b.ID) })
	for _, d := range sorted {
		if d.ID == "" || string(d.ID) <= p.After {
			continue
		}
		if len(page) == limit {
			return Drives{Drives: page, Next: string(page[limit-1].ID)}, nil
		}
		page = append(page, d)
	}
	return Drives{Drives: page}, nil
}
